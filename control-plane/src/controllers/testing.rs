//! Objects and small worlds for tests: a real store in memory, the real writer, the engine, and
//! agents that do at once what agents do.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, PodCondition};
use trellis_model::{Kind, Object, conditions};

use super::cache::Cache;
use super::engine::{Config, Engine, Job};
use super::node::cidr::PodRange;
use super::object::{Now, ObjKey, Write};
use super::pods;
use super::writer::{AdmittedWriter, ClusterWriter, Written};
use crate::api::ops::{Admission, Backend, InMemory, Sealer};
use crate::store::{WatchFilter, Watcher};

pub fn admission() -> Admission {
    Admission::new(Sealer::new(trellis_proto::pki::Key::generate()))
}

pub fn object(json: serde_json::Value) -> Object {
    let kind = Object::kind_of_value(&json).unwrap();
    let (object, unknown) = Object::from_value(kind, &json).unwrap();
    assert!(unknown.is_empty(), "{unknown:?}");
    object
}

pub fn pod(namespace: &str, name: &str) -> Pod {
    match object(serde_json::json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"containers": [{"name": "c", "image": "web"}]},
    })) {
        Object::Pod(p) => *p,
        _ => unreachable!(),
    }
}

pub fn node(name: &str, cpu: &str, memory: &str) -> Node {
    match object(serde_json::json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {
            "allocatable": {"cpu": cpu, "memory": memory, "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "AgentReady"}],
        },
    })) {
        Object::Node(n) => *n,
        _ => unreachable!(),
    }
}

pub fn deployment(name: &str, replicas: i32, cpu: &str) -> Deployment {
    match object(serde_json::json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": "default", "name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": "web", "resources": {"requests": {"cpu": cpu, "memory": "16Mi"}}}]},
            },
        },
    })) {
        Object::Deployment(d) => *d,
        _ => unreachable!(),
    }
}

macro_rules! into_object {
    ($($t:ident),*) => {$(
        impl IntoObject for $t {
            fn into_object(self) -> Object { Object::$t(Box::new(self)) }
        }
    )*};
}
pub trait IntoObject {
    fn into_object(self) -> Object;
}
impl IntoObject for Object {
    fn into_object(self) -> Object {
        self
    }
}
into_object!(Pod, Node, Namespace, Deployment, ReplicaSet);

/// A cache over objects put in by hand: for planners alone.
#[derive(Default)]
pub struct World {
    pub cache: Cache,
    revision: u64,
}

impl World {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn now(&self) -> Now {
        Now::read()
    }

    /// As if admitted, but with status and deletion kept.
    pub fn create(&mut self, object: impl IntoObject) -> ObjKey {
        let mut object = object.into_object();
        self.revision += 1;
        let revision = self.revision;
        object.meta_mut().uid.get_or_insert_with(|| format!("uid-{revision}"));
        let key = ObjKey::of(object.kind(), object.meta());
        let stored = crate::store::Stored {
            json: object.encode().into(),
            splice_at: 0,
            index: crate::store::Index::default(),
            sealed: false,
        };
        let store_key = crate::api::ops::encode::key_of(key.kind, &key.namespace, &key.name);
        self.cache.put(&store_key, revision, Some(&stored)).unwrap();
        self.cache.set_revision(revision);
        key
    }
}

/// A whole leader in memory, on a clock of its own.
pub struct Sim {
    pub backend: Arc<InMemory>,
    pub writer: AdmittedWriter,
    pub engine: Engine,
    pub watcher: Watcher,
    pub now: Now,
    pub jobs: Vec<Job>,
    pub commits: usize,
    pub writes: usize,
}

impl Sim {
    pub fn new() -> Self {
        let backend = Arc::new(InMemory::new());
        let writer = AdmittedWriter::new(backend.clone(), admission());
        let ranges = vec![PodRange::new("10.244.0.0/16".parse().unwrap(), 24).unwrap()];
        let now = Now::read();
        let engine = Engine::new(Config { pod_ranges: ranges, ..Config::default() }, 1, 7, &now);
        let kinds = Kind::ALL.iter().map(|k| k.name());
        let watcher = backend.store().watch(WatchFilter::kinds(kinds), 0).unwrap();
        let mut sim = Self { backend, writer, engine, watcher, now, jobs: Vec::new(), commits: 0, writes: 0 };
        sim.create(object(
            serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}),
        ));
        sim
    }

    pub fn commit(&mut self, writes: Vec<Write>) -> Written {
        self.writer.commit(writes, 1).now_or_never().expect("memory answers at once")
    }

    pub fn create(&mut self, object: impl IntoObject) {
        let object = object.into_object();
        let done = self.commit(vec![Write::Create(object)]);
        assert!(matches!(done, Written::Done(_)), "{done:?}");
    }

    /// Changes an object as somebody outside would.
    pub fn edit(&mut self, key: &ObjKey, f: impl FnOnce(&mut Object)) {
        let versioned = self.get(key).unwrap_or_else(|| panic!("{key} is not there"));
        let (mut object, revision) = versioned;
        f(&mut object);
        let done = self.commit(vec![Write::Update { object, revision }]);
        assert!(matches!(done, Written::Done(_)), "{done:?}");
    }

    pub fn delete(&mut self, key: &ObjKey) {
        let done = self.commit(vec![Write::Delete { key: key.clone(), uid: String::new(), revision: None }]);
        assert!(matches!(done, Written::Done(_)), "{done:?}");
    }

    pub fn get(&self, key: &ObjKey) -> Option<(Object, u64)> {
        let store_key = crate::api::ops::encode::key_of(key.kind, &key.namespace, &key.name);
        let v = self.backend.store().get(&store_key)?;
        Some((Object::decode(key.kind, &v.object.json).unwrap(), v.revision))
    }

    pub fn all(&self, kind: Kind) -> Vec<Object> {
        let (lists, _) = self.backend.store().list_kinds(&[kind.name()]);
        lists[0].iter().map(|v| Object::decode(kind, &v.object.json).unwrap()).collect()
    }

    pub fn pods(&self) -> Vec<Pod> {
        let pods = self.all(Kind::Pod).into_iter();
        pods.map(|o| if let Object::Pod(p) = o { *p } else { unreachable!() }).collect()
    }

    pub fn get_deployment(&self, name: &str) -> Deployment {
        match self.get(&ObjKey::new(Kind::Deployment, "default", name)).unwrap().0 {
            Object::Deployment(d) => *d,
            _ => unreachable!(),
        }
    }

    pub fn get_node(&self, name: &str) -> Node {
        match self.get(&ObjKey::new(Kind::Node, "", name)).unwrap().0 {
            Object::Node(n) => *n,
            _ => unreachable!(),
        }
    }

    /// The cache learns what is new.
    pub fn deliver(&mut self) -> bool {
        let batch = self.watcher.poll().unwrap();
        for event in &batch.events {
            self.engine.on_event(event, &self.now).unwrap();
        }
        self.engine.on_revision(batch.revision);
        !batch.events.is_empty()
    }

    /// The engine plans.
    pub fn plan(&mut self) -> bool {
        let jobs = self.engine.poll(&self.now);
        let any = !jobs.is_empty();
        self.jobs.extend(jobs);
        any || self.engine.is_behind()
    }

    /// One planned transaction is committed and reported.
    pub fn commit_job(&mut self, index: usize) {
        let job = self.jobs.remove(index);
        self.commits += 1;
        self.writes += job.writes.len();
        let written = self.commit(job.writes);
        assert!(!matches!(written, Written::Failed(_)), "{written:?}");
        self.engine.on_done(job.id, written, &self.now);
    }

    /// Until nothing more happens at this time, without agents.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            let delivered = self.deliver();
            let planned = self.plan();
            let had = !self.jobs.is_empty();
            while !self.jobs.is_empty() {
                self.commit_job(0);
            }
            if !delivered && !planned && !had {
                return;
            }
        }
        panic!("never comes to rest");
    }

    /// The same with every agent doing its work at once; back-offs pass.
    pub fn run(&mut self) {
        for _ in 0..10_000 {
            self.settle();
            if self.agents() == 0 {
                self.pass(Duration::from_millis(50));
                self.settle();
                if self.agents() == 0 {
                    return;
                }
            }
        }
        panic!("never comes to rest");
    }

    /// Time goes by, for both clocks.
    pub fn pass(&mut self, by: Duration) {
        self.now.mono += by;
        self.now.wall = self.now.wall.checked_add(k8s_openapi::jiff::SignedDuration::try_from(by).unwrap()).unwrap();
    }

    /// What agents of all nodes would do now: (Pod, whether it is to go).
    pub fn agent_work(&self) -> Vec<ObjKey> {
        let needs = |p: &Pod| {
            let bound = p.spec.as_ref().unwrap().node_name.is_some();
            bound && (p.metadata.deletion_timestamp.is_some() || !pods::ready(p))
        };
        self.pods().iter().filter(|p| needs(p)).map(|p| ObjKey::of(Kind::Pod, &p.metadata)).collect()
    }

    /// One Pod's agent does its work: starts it, or confirms its end.
    pub fn agent(&mut self, key: &ObjKey) {
        let Some((Object::Pod(pod), _)) = self.get(key) else { return };
        if pod.metadata.deletion_timestamp.is_some() {
            return self.delete(key);
        }
        let now = self.now;
        self.edit(key, |o| {
            let Object::Pod(p) = o else { return };
            let status = p.status.get_or_insert_default();
            status.phase = Some("Running".into());
            let ready = PodCondition { type_: "Ready".into(), status: "True".into(), ..Default::default() };
            conditions::set(&mut status.conditions, ready, now.time());
        });
    }

    fn agents(&mut self) -> usize {
        let work = self.agent_work();
        for key in &work {
            self.agent(key);
        }
        work.len()
    }

    /// Active Pods by node.
    pub fn per_node(&self) -> BTreeMap<String, usize> {
        let mut out = BTreeMap::new();
        for p in self.pods() {
            if p.metadata.deletion_timestamp.is_none()
                && let Some(n) = p.spec.and_then(|s| s.node_name)
            {
                *out.entry(n).or_default() += 1;
            }
        }
        out
    }
}
