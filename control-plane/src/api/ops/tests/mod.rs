//! The operations on one member in memory.
#![allow(clippy::unwrap_used, missing_docs)]

mod access;
mod reads;
mod watches;
mod writes;

use std::sync::Arc;

use serde_json::{Value, json};
use trellis_model::Kind;
use trellis_proto::identity::Identity;
use trellis_proto::pki;

use super::delete::{DeleteArgs, Deleted};
use super::*;
use crate::auth::Caller;

pub(super) fn admin() -> Caller {
    Caller::Peer(Identity::Admin("admin".into()))
}

pub(super) fn agent(node: &str) -> Caller {
    Caller::Peer(Identity::Agent(node.into()))
}

pub(super) fn netd(node: &str) -> Caller {
    Caller::Peer(Identity::Netd(node.into()))
}

pub(super) fn target(kind: Kind, name: &str) -> Target {
    Target::new(kind, "default", name)
}

pub(super) fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "a", "image": "i:1"}]}})
}

pub(super) fn config_map(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
        "data": {"k": value}})
}

pub(super) struct Bed {
    pub ops: Ops,
}

impl Bed {
    /// A store with the Namespace `default`.
    pub async fn new() -> Self {
        let sealer = Sealer::new(pki::Key::generate());
        let bed = Self { ops: Ops::new(Arc::new(InMemory::new()), sealer) };
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": "default"}});
        bed.create(Kind::Namespace, &namespace).await.unwrap();
        bed
    }

    pub async fn create(&self, kind: Kind, object: &Value) -> Result<Value, ApiError> {
        self.create_as(&admin(), kind, object).await
    }

    pub async fn create_as(&self, caller: &Caller, kind: Kind, object: &Value) -> Result<Value, ApiError> {
        let target = Target::new(kind, "", "");
        let json = object.to_string();
        let options = WriteOptions::default();
        let answer = self.ops.create(caller, &target, json.as_bytes(), &options).await?;
        Ok(read(&answer))
    }

    pub async fn get(&self, caller: &Caller, target: &Target) -> Result<Value, ApiError> {
        self.ops.get(caller, target, false).await.map(|a| read(&a))
    }

    pub async fn patch(&self, caller: &Caller, target: &Target, part: Part, patch: Value) -> Result<Value, ApiError> {
        let text = patch.to_string();
        let options = WriteOptions::default();
        self.ops.patch(caller, target, part, text.as_bytes(), &options).await.map(|a| read(&a))
    }

    pub async fn delete(&self, caller: &Caller, target: &Target, grace: Option<i64>) -> Result<Deleted, ApiError> {
        let args = DeleteArgs { grace_seconds: grace, ..DeleteArgs::default() };
        self.ops.delete(caller, target, &args, &WriteOptions::default()).await
    }

    /// What the scheduler does.
    pub async fn bind(&self, name: &str, node: &str) {
        let found = self.ops.store().get(&target(Kind::Pod, name).key()).unwrap();
        let old = encode::decode(&found, self.ops.sealer()).unwrap();
        let mut new = old.clone();
        if let trellis_model::Object::Pod(pod) = &mut new {
            pod.spec.as_mut().unwrap().node_name = Some(node.into());
        }
        let admission = self.ops.admission();
        let Change::Put(bound) = admission.prepare_trusted_update(&old, new).unwrap() else {
            panic!("binding changes a Pod")
        };
        let put = Op::Put { key: bound.key, when: crate::store::When::Always, object: bound.stored };
        assert!(matches!(self.ops.commit(None, vec![put]).await.unwrap(), Committed::Done { .. }));
    }
}

pub(super) fn read(answer: &Answer) -> Value {
    let value: Value = serde_json::from_slice(&answer.json).unwrap();
    if answer.revision != 0 {
        assert_eq!(value["metadata"]["resourceVersion"], answer.revision.to_string());
    }
    value
}

/// The error, or a panic that shows what was done instead.
pub(super) fn refused<T: std::fmt::Debug>(result: Result<T, ApiError>) -> ApiError {
    result.expect_err("this was to be refused")
}
