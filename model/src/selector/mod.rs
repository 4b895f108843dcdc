//! Selectors: which objects a list, a watch, a ReplicaSet or a policy means.

mod field;
mod label;

use std::collections::BTreeMap;

pub use field::{FieldSelector, fields_of, supported_fields};
pub use label::{LabelSelector, Op, Requirement};

/// Why a selector cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// The text of a label selector is not one.
    #[error("unable to parse label selector {text:?}: {why}")]
    Label {
        /// The selector as written.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// The text of a field selector is not one.
    #[error("invalid field selector {text:?}: {why}")]
    Field {
        /// The selector as written.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// The kind cannot be selected by that field.
    #[error("field label not supported: {field} ({kind} can be selected by {supported})")]
    FieldNotSupported {
        /// The kind's name.
        kind: &'static str,
        /// The field asked for.
        field: String,
        /// Fields that work, separated by commas.
        supported: String,
    },
}

/// Something that has labels.
pub trait Labels {
    /// The value of the label, if there is one.
    fn label(&self, key: &str) -> Option<&str>;
}

impl Labels for BTreeMap<String, String> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

impl Labels for [(String, String)] {
    fn label(&self, key: &str) -> Option<&str> {
        self.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
}

impl Labels for Vec<(String, String)> {
    fn label(&self, key: &str) -> Option<&str> {
        self.as_slice().label(key)
    }
}

impl<T: Labels> Labels for Option<T> {
    fn label(&self, key: &str) -> Option<&str> {
        self.as_ref().and_then(|l| l.label(key))
    }
}
