//! A typed object of any kind that Trellis serves.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Node, Pod, Secret};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde_json::Value;

use crate::kind::{Kind, UnknownKind};
use crate::strict;

/// An object of one of the kinds in [`Kind`].
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// core/v1 Namespace
    Namespace(Box<Namespace>),
    /// core/v1 Node
    Node(Box<Node>),
    /// core/v1 Pod
    Pod(Box<Pod>),
    /// apps/v1 ReplicaSet
    ReplicaSet(Box<ReplicaSet>),
    /// apps/v1 Deployment
    Deployment(Box<Deployment>),
    /// networking.k8s.io/v1 NetworkPolicy
    NetworkPolicy(Box<NetworkPolicy>),
    /// core/v1 ConfigMap
    ConfigMap(Box<ConfigMap>),
    /// core/v1 Secret
    Secret(Box<Secret>),
    /// core/v1 Event
    Event(Box<Event>),
}

/// Why bytes are not the object that they claim to be.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The text is not JSON.
    #[error("not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A field has the wrong type; the path says which.
    #[error("{kind} cannot be read: {field}: {message}")]
    Field {
        /// The kind that was expected.
        kind: Kind,
        /// `spec.replicas`; `(root)` for the object itself.
        field: String,
        /// What is wrong with the value.
        message: String,
    },
    /// The document names no kind.
    #[error("object has no {0}: every manifest needs apiVersion and kind")]
    NoKind(&'static str),
    /// The document names a kind that Trellis does not serve.
    #[error(transparent)]
    Unknown(#[from] UnknownKind),
}

macro_rules! each_kind {
    ($value:expr, $o:ident => $body:expr) => {
        match $value {
            Object::Namespace($o) => $body,
            Object::Node($o) => $body,
            Object::Pod($o) => $body,
            Object::ReplicaSet($o) => $body,
            Object::Deployment($o) => $body,
            Object::NetworkPolicy($o) => $body,
            Object::ConfigMap($o) => $body,
            Object::Secret($o) => $body,
            Object::Event($o) => $body,
        }
    };
}

impl Object {
    /// Reads an object of `kind` from JSON. Unknown fields are ignored: what comes from the store
    /// may be newer than this reader. What comes from people goes through [`Object::from_value`].
    pub fn decode(kind: Kind, json: &[u8]) -> Result<Object, DecodeError> {
        Ok(match kind {
            Kind::Namespace => Object::Namespace(serde_json::from_slice(json)?),
            Kind::Node => Object::Node(serde_json::from_slice(json)?),
            Kind::Pod => Object::Pod(serde_json::from_slice(json)?),
            Kind::ReplicaSet => Object::ReplicaSet(serde_json::from_slice(json)?),
            Kind::Deployment => Object::Deployment(serde_json::from_slice(json)?),
            Kind::NetworkPolicy => Object::NetworkPolicy(serde_json::from_slice(json)?),
            Kind::ConfigMap => Object::ConfigMap(serde_json::from_slice(json)?),
            Kind::Secret => Object::Secret(serde_json::from_slice(json)?),
            Kind::Event => Object::Event(serde_json::from_slice(json)?),
        })
    }

    /// Reads an object that a person or program sent: a wrong type is told with its path, and the
    /// paths of unknown fields come back beside the object.
    pub fn from_value(kind: Kind, value: &Value) -> Result<(Object, Vec<String>), DecodeError> {
        fn typed<T: serde::de::DeserializeOwned>(
            kind: Kind,
            value: &Value,
        ) -> Result<(Box<T>, Vec<String>), DecodeError> {
            strict::decode::<T>(value).map(|(o, unknown)| (Box::new(o), unknown)).map_err(|e| DecodeError::Field {
                kind,
                field: e.field,
                message: e.message,
            })
        }
        Ok(match kind {
            Kind::Namespace => typed(kind, value).map(|(o, u)| (Object::Namespace(o), u))?,
            Kind::Node => typed(kind, value).map(|(o, u)| (Object::Node(o), u))?,
            Kind::Pod => typed(kind, value).map(|(o, u)| (Object::Pod(o), u))?,
            Kind::ReplicaSet => typed(kind, value).map(|(o, u)| (Object::ReplicaSet(o), u))?,
            Kind::Deployment => typed(kind, value).map(|(o, u)| (Object::Deployment(o), u))?,
            Kind::NetworkPolicy => typed(kind, value).map(|(o, u)| (Object::NetworkPolicy(o), u))?,
            Kind::ConfigMap => typed(kind, value).map(|(o, u)| (Object::ConfigMap(o), u))?,
            Kind::Secret => typed(kind, value).map(|(o, u)| (Object::Secret(o), u))?,
            Kind::Event => typed(kind, value).map(|(o, u)| (Object::Event(o), u))?,
        })
    }

    /// Every field of a wrong type, as path and complaint: what [`Object::from_value`] tells the
    /// first of.
    pub fn type_errors(kind: Kind, value: &Value) -> Vec<(String, String)> {
        let all = match kind {
            Kind::Namespace => strict::errors::<Namespace>(value),
            Kind::Node => strict::errors::<Node>(value),
            Kind::Pod => strict::errors::<Pod>(value),
            Kind::ReplicaSet => strict::errors::<ReplicaSet>(value),
            Kind::Deployment => strict::errors::<Deployment>(value),
            Kind::NetworkPolicy => strict::errors::<NetworkPolicy>(value),
            Kind::ConfigMap => strict::errors::<ConfigMap>(value),
            Kind::Secret => strict::errors::<Secret>(value),
            Kind::Event => strict::errors::<Event>(value),
        };
        all.into_iter().map(|e| (e.field, e.message)).collect()
    }

    /// The kind that a manifest names.
    pub fn kind_of_value(value: &Value) -> Result<Kind, DecodeError> {
        let text = |field: &'static str| {
            value.get(field).and_then(Value::as_str).filter(|s| !s.is_empty()).ok_or(DecodeError::NoKind(field))
        };
        let api_version = text("apiVersion")?;
        Ok(Kind::from_api_version_kind(api_version, text("kind")?)?)
    }

    /// The object as JSON, apiVersion and kind included.
    pub fn encode(&self) -> Vec<u8> {
        // These types serialise from plain maps and strings: no error path exists for a Vec.
        each_kind!(self, o => serde_json::to_vec(o)).unwrap_or_default()
    }

    /// The object as a JSON value, apiVersion and kind included.
    pub fn to_value(&self) -> Value {
        fn value<T: Serialize>(o: &T) -> Value {
            serde_json::to_value(o).unwrap_or_default()
        }
        each_kind!(self, o => value(o))
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Object::Namespace(_) => Kind::Namespace,
            Object::Node(_) => Kind::Node,
            Object::Pod(_) => Kind::Pod,
            Object::ReplicaSet(_) => Kind::ReplicaSet,
            Object::Deployment(_) => Kind::Deployment,
            Object::NetworkPolicy(_) => Kind::NetworkPolicy,
            Object::ConfigMap(_) => Kind::ConfigMap,
            Object::Secret(_) => Kind::Secret,
            Object::Event(_) => Kind::Event,
        }
    }

    /// Its metadata.
    pub fn meta(&self) -> &ObjectMeta {
        each_kind!(self, o => &o.metadata)
    }

    /// Its metadata, to be changed.
    pub fn meta_mut(&mut self) -> &mut ObjectMeta {
        each_kind!(self, o => &mut o.metadata)
    }

    /// `metadata.name`, empty when it has none yet.
    pub fn name(&self) -> &str {
        self.meta().name.as_deref().unwrap_or_default()
    }

    /// `metadata.namespace`, empty for cluster-scoped objects.
    pub fn namespace(&self) -> &str {
        self.meta().namespace.as_deref().unwrap_or_default()
    }

    /// `metadata.uid`, empty before admission.
    pub fn uid(&self) -> &str {
        self.meta().uid.as_deref().unwrap_or_default()
    }

    /// Takes everything but `status` from `self` and the status from `other`: what an Update of
    /// the main resource does, and, swapped, what an Update of its status does.
    #[must_use]
    pub fn with_status_of(mut self, other: &Object) -> Object {
        match (&mut self, other) {
            (Object::Namespace(a), Object::Namespace(b)) => a.status.clone_from(&b.status),
            (Object::Node(a), Object::Node(b)) => a.status.clone_from(&b.status),
            (Object::Pod(a), Object::Pod(b)) => a.status.clone_from(&b.status),
            (Object::ReplicaSet(a), Object::ReplicaSet(b)) => a.status.clone_from(&b.status),
            (Object::Deployment(a), Object::Deployment(b)) => a.status.clone_from(&b.status),
            _ => {}
        }
        self
    }

    /// Whether the kind has a status that is written on its own.
    pub fn has_status(kind: Kind) -> bool {
        matches!(kind, Kind::Namespace | Kind::Node | Kind::Pod | Kind::ReplicaSet | Kind::Deployment)
    }
}

macro_rules! conversions {
    ($($variant:ident),*) => {$(
        impl From<$variant> for Object {
            fn from(o: $variant) -> Object {
                Object::$variant(Box::new(o))
            }
        }
        impl TryFrom<Object> for $variant {
            type Error = Object;
            fn try_from(o: Object) -> Result<$variant, Object> {
                match o {
                    Object::$variant(x) => Ok(*x),
                    other => Err(other),
                }
            }
        }
    )*};
}
conversions!(Namespace, Node, Pod, ReplicaSet, Deployment, NetworkPolicy, ConfigMap, Secret, Event);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use serde_json::json;

    #[test]
    fn all_wrong_types_are_told() {
        let pod = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "t"},
            "spec": {"hostNetwork": "yes", "containers": [
                {"name": 1, "image": "x", "command": "ls", "args": ["a", 2], "ports": [{"containerPort": "80"}]}, "text"]}});
        let fields: Vec<String> = Object::type_errors(Kind::Pod, &pod).into_iter().map(|(f, _)| f).collect();
        let mut sorted = fields.clone();
        sorted.sort();
        let c = |rest: &str| format!("spec.containers[{rest}");
        let want = [
            c("0].args[1]"),
            c("0].command"),
            c("0].name"),
            c("0].ports[0].containerPort"),
            c("1]"),
            "spec.hostNetwork".into(),
        ];
        assert_eq!(sorted, want);
        assert!(Object::type_errors(Kind::Pod, &serde_json::json!({"metadata": {"name": "t"}})).is_empty());
        assert_eq!(Object::type_errors(Kind::Pod, &serde_json::json!([])).len(), 1);
    }

    #[test]
    fn round_trip_with_api_version() {
        for k in Kind::ALL {
            let v = json!({"apiVersion": k.api_version(), "kind": k.name(), "metadata": {"name": "x"}});
            assert_eq!(Object::kind_of_value(&v).unwrap(), k);
            let (o, unknown) = Object::from_value(k, &v).unwrap();
            assert!(unknown.is_empty());
            assert_eq!(o.kind(), k);
            let again = Object::decode(k, &o.encode()).unwrap();
            assert_eq!(again, o);
            assert_eq!(o.to_value()["kind"], k.name());
        }
    }

    #[test]
    fn a_wrong_type_is_told_with_its_path() {
        let v = json!({"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"},
            "spec":{"containers":[{"name":"a","ports":[{"containerPort":"eighty"}]}]}});
        let e = Object::from_value(Kind::Pod, &v).unwrap_err().to_string();
        assert!(e.contains("spec.containers[0].ports[0].containerPort"), "{e}");
    }

    #[test]
    fn unknown_fields_come_back() {
        let v = json!({"apiVersion":"v1","kind":"Pod","metadata":{"name":"x","colour":"red"},
            "spec":{"containers":[{"name":"a","imag":"y"}]}, "extra": 1});
        let (_, unknown) = Object::from_value(Kind::Pod, &v).unwrap();
        assert_eq!(unknown, ["extra", "metadata.colour", "spec.containers[0].imag"]);
    }

    #[test]
    fn no_kind() {
        assert!(matches!(Object::kind_of_value(&json!({})), Err(DecodeError::NoKind("apiVersion"))));
        assert!(matches!(
            Object::kind_of_value(&json!({"apiVersion":"v1","kind":"Service"})),
            Err(DecodeError::Unknown(_))
        ));
    }
}
