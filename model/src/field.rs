//! Problems of a manifest, each with the path of its field, in Kubernetes' words.

use std::fmt;

use serde_json::Value;

/// One problem: the field, Kubernetes' reason for it, and the message that a person reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// `spec.containers[0].image`
    pub field: String,
    /// Kubernetes' cause: `FieldValueRequired`, `FieldValueInvalid`, `FieldValueNotSupported`,
    /// `FieldValueForbidden`, `FieldValueDuplicate`, `FieldValueTooLong`, `FieldValueTypeInvalid`,
    /// `FieldValueNotFound`, `FieldValueTooMany`.
    pub reason: &'static str,
    /// `Invalid value: "x": must be …`; without the field.
    pub message: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

impl std::error::Error for FieldError {}

impl FieldError {
    fn new(field: &Path, reason: &'static str, message: String) -> Self {
        FieldError { field: field.to_string(), reason, message }
    }

    /// A field that must be there is not.
    pub fn required(field: &Path, detail: &str) -> Self {
        let m = if detail.is_empty() { String::new() } else { format!(": {detail}") };
        Self::new(field, "FieldValueRequired", format!("Required value{m}"))
    }

    /// The value breaks a rule. Strings are shown quoted, everything else as JSON.
    pub fn invalid(field: &Path, value: impl Into<Value>, detail: &str) -> Self {
        let v = value.into();
        Self::new(field, "FieldValueInvalid", format!("Invalid value: {v}: {detail}"))
    }

    /// The value is not one of a closed set.
    pub fn not_supported(field: &Path, value: &str, supported: &[&str]) -> Self {
        let all: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        Self::new(
            field,
            "FieldValueNotSupported",
            format!("Unsupported value: {value:?}: supported values: {}", all.join(", ")),
        )
    }

    /// The field may not be set, or not be changed.
    pub fn forbidden(field: &Path, detail: &str) -> Self {
        Self::new(field, "FieldValueForbidden", format!("Forbidden: {detail}"))
    }

    /// The value was there before in the same list.
    pub fn duplicate(field: &Path, value: impl Into<Value>) -> Self {
        Self::new(field, "FieldValueDuplicate", format!("Duplicate value: {}", value.into()))
    }

    /// The value is longer than `max` bytes.
    pub fn too_long(field: &Path, max: usize) -> Self {
        Self::new(field, "FieldValueTooLong", format!("Too long: may not be more than {max} bytes"))
    }

    /// The value names something that is not there.
    pub fn not_found(field: &Path, value: &str) -> Self {
        Self::new(field, "FieldValueNotFound", format!("Not found: {value:?}"))
    }

    /// The value has the wrong JSON type.
    pub fn type_invalid(field: &str, detail: &str) -> Self {
        FieldError {
            field: field.to_owned(),
            reason: "FieldValueTypeInvalid",
            message: format!("Invalid value: {detail}"),
        }
    }
}

/// The path of a field, grown while walking an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    /// Starts at a top-level field.
    pub fn new(name: &str) -> Self {
        Path(name.to_owned())
    }

    /// A field of the object at this path; dots in `name` are taken as written.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() { Path(name.to_owned()) } else { Path(format!("{}.{name}", self.0)) }
    }

    /// An element of the list at this path.
    #[must_use]
    pub fn index(&self, i: usize) -> Self {
        Path(format!("{}[{i}]", self.0))
    }

    /// An entry of the map at this path.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Path(format!("{}[{key}]", self.0))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
