//! From a typed object to what the store keeps: canonical JSON and the keys it is found by.

use std::cell::OnceCell;

use bytes::Bytes;
use serde_json::Value;
use trellis_model::selector::{FieldSelector, LabelSelector, fields_of};
use trellis_model::{Kind, Object};

use super::{ApiError, Sealer};
use crate::store::{INDEXED_FIELDS, Index, Key, Stored, Versioned};

/// Selectable fields that are kept beside each object; the others are read out of its JSON
/// when somebody selects by them, which is rare.
fn kept_fields(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Pod => &["spec.nodeName", "status.phase"],
        Kind::Namespace => &["status.phase"],
        Kind::Node => &["spec.unschedulable"],
        Kind::Secret => &["type"],
        Kind::Event => &["involvedObject.uid", "involvedObject.kind", "involvedObject.name"],
        _ => &[],
    }
}

/// The store's key of an object.
pub fn key_of(kind: Kind, namespace: &str, name: &str) -> Key {
    Key::new(kind.group(), kind.name(), namespace, name)
}

/// The kind of a key of the store.
///
/// # Errors
/// [`ApiError::Internal`] when this version does not know it.
pub fn kind_of(key: &Key) -> Result<Kind, ApiError> {
    Kind::from_group_kind(&key.group, &key.kind).map_err(|e| ApiError::Internal(e.to_string()))
}

/// What the store keeps, and the same in clear.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// Its identity.
    pub key: Key,
    /// For the store.
    pub stored: Stored,
    /// The JSON in clear, without metadata.resourceVersion.
    pub plain: Bytes,
}

/// Encodes an admitted object. `metadata.resourceVersion` must be unset: it is put in on
/// reading.
///
/// # Errors
/// [`ApiError::Internal`] when the object has no metadata to put the revision into.
pub fn encode(object: &Object, sealer: &Sealer) -> Result<Encoded, ApiError> {
    let kind = object.kind();
    let key = key_of(kind, object.namespace(), object.name());
    let plain = Bytes::from(canonical(object));
    let (api_version, name) = (kind.api_version(), kind.name());
    let head = format!("{{\"apiVersion\":\"{api_version}\",\"kind\":\"{name}\",\"metadata\":{{");
    if !plain.starts_with(head.as_bytes()) || object.name().is_empty() {
        return Err(ApiError::Internal(format!("{key} is not encoded as expected")));
    }
    let splice_at = u32::try_from(head.len()).unwrap_or_default();
    let sealed = kind == Kind::Secret;
    let json = if sealed { sealer.seal(&key, &plain) } else { plain.clone() };
    let stored = Stored { json, splice_at, index: index(object), sealed };
    Ok(Encoded { key, stored, plain })
}

/// The object's JSON, beginning with apiVersion, kind and metadata whatever its kind: the types
/// of kinds without a spec write their other fields first.
fn canonical(object: &Object) -> Vec<u8> {
    if !matches!(object.kind(), Kind::ConfigMap | Kind::Secret | Kind::Event) {
        return object.encode();
    }
    let Value::Object(mut from) = object.to_value() else { return object.encode() };
    let mut ordered = serde_json::Map::with_capacity(from.len());
    for first in ["apiVersion", "kind", "metadata"] {
        if let Some(value) = from.shift_remove(first) {
            ordered.insert(first.to_owned(), value);
        }
    }
    ordered.extend(from);
    // A map of values always serialises.
    serde_json::to_vec(&ordered).unwrap_or_default()
}

fn index(object: &Object) -> Index {
    let meta = object.meta();
    let labels = meta.labels.iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    let kept = kept_fields(object.kind());
    let fields = if kept.is_empty() {
        Vec::new()
    } else {
        fields_of(object)
            .into_iter()
            .filter(|(name, value)| kept.contains(name) && !value.is_empty())
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    };
    let owners = meta.owner_references.iter().flatten().map(|o| o.uid.clone()).collect();
    Index { uid: object.uid().to_owned(), labels, fields, owners }
}

/// Reads a stored object back, with metadata.resourceVersion set.
///
/// # Errors
/// [`ApiError::Internal`] when it cannot be opened or decoded.
pub fn decode(object: &Versioned, sealer: &Sealer) -> Result<Object, ApiError> {
    let kind = kind_of(&object.key)?;
    let json = sealer.open(object)?;
    let mut typed =
        Object::decode(kind, &json).map_err(|e| ApiError::Internal(format!("{} in the store: {e}", object.key)))?;
    typed.meta_mut().resource_version = Some(object.revision.to_string());
    Ok(typed)
}

/// Label and field selectors of one call.
#[derive(Debug, Clone, Default)]
pub struct Selectors {
    labels: LabelSelector,
    fields: FieldSelector,
    /// What the caller's role adds: a field that must have a value.
    forced: Option<(&'static str, String)>,
    /// Only Pods that are bound to a node.
    bound: bool,
}

impl Selectors {
    /// Reads both texts; empty ones match everything.
    ///
    /// # Errors
    /// [`ApiError::BadRequest`] naming what cannot be read or is not supported by the kind.
    pub fn parse(kind: Kind, labels: &str, fields: &str) -> Result<Self, ApiError> {
        let bad = |e: trellis_model::selector::SelectorError| ApiError::BadRequest(e.to_string());
        let labels = LabelSelector::parse(labels).map_err(bad)?;
        let fields = FieldSelector::parse(fields).map_err(bad)?;
        fields.check(kind).map_err(bad)?;
        Ok(Self { labels, fields, forced: None, bound: false })
    }

    /// Also requires a field to have a value.
    pub fn force(&mut self, field: &'static str, value: String) {
        self.forced = Some((field, value));
    }

    /// Also leaves out Pods that no node has: they have no address, so the network has nothing
    /// to do for them, and there may be very many.
    pub fn only_bound(&mut self) {
        self.bound = true;
    }

    /// A value that the field must have, for the store's own filter.
    pub fn required(&self, field: &str) -> Option<&str> {
        match &self.forced {
            Some((forced, value)) if *forced == field => Some(value),
            _ => self.fields.required_value(field),
        }
    }

    /// A field with its value by which the store finds all objects that can match, without looking
    /// at the others.
    pub fn looked_up(&self) -> Option<(&'static str, &str)> {
        let value = |f: &&'static str| self.required(f).filter(|v| !v.is_empty()).map(|v| (*f, v));
        INDEXED_FIELDS.iter().find_map(value)
    }

    /// Does every object match?
    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything() && self.forced.is_none() && !self.bound
    }

    /// Does this version match?
    pub fn matches(&self, kind: Kind, object: &Versioned, sealer: &Sealer) -> bool {
        if self.is_everything() {
            return true;
        }
        let index = &object.object.index;
        if self.bound && index.field("spec.nodeName").is_none() {
            return false;
        }
        if !self.labels.is_everything() && !self.labels.matches(&index.labels) {
            return false;
        }
        let rest = OnceCell::new();
        let get = |field: &str| -> Option<&str> {
            match field {
                "metadata.name" => Some(object.key.name.as_str()),
                "metadata.namespace" => Some(object.key.namespace.as_str()),
                kept if kept_fields(kind).contains(&kept) => index.field(kept),
                other => {
                    let all: &Vec<(&'static str, String)> =
                        rest.get_or_init(|| decode(object, sealer).map(|o| fields_of(&o)).unwrap_or_default());
                    all.iter().find(|(name, _)| *name == other).map(|(_, v)| v.as_str())
                }
            }
        };
        if let Some((field, value)) = &self.forced
            && get(field).unwrap_or_default() != value
        {
            return false;
        }
        self.fields.is_everything() || self.fields.matches(get)
    }
}
