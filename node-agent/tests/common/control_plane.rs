//! A control plane that keeps objects in memory and speaks the real wire over a unix socket.
use std::{
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use trellis_proto::{
    api::*,
    server::{Listen, listen},
    tls::{ClientAuth, Credentials, server_config},
};

#[derive(Default)]
struct State {
    revision: u64,
    objects: Vec<(ObjectKey, Value)>,
    log: Vec<(u64, EventType, ObjectKey, Value)>,
}

#[derive(Clone)]
pub struct FakeControlPlane {
    state: Arc<Mutex<State>>,
    news: Arc<watch::Sender<u64>>,
}

pub fn key(kind: &str, name: &str) -> ObjectKey {
    let namespace = if kind == "Node" { "" } else { "default" };
    ObjectKey { group: String::new(), kind: kind.into(), namespace: namespace.into(), name: name.into() }
}

impl FakeControlPlane {
    pub async fn start(socket: &Path, credentials: &Arc<Credentials>) -> Self {
        let this = Self { state: Arc::default(), news: Arc::new(watch::channel(0).0) };
        let tls = server_config(credentials, ClientAuth::Required).unwrap();
        let incoming = listen(&Listen::Unix(socket.to_owned()), tls).await.unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(resources_server::ResourcesServer::new(this.clone()))
            .add_service(nodes_server::NodesServer::new(this.clone()))
            .serve_with_incoming(incoming);
        tokio::spawn(server);
        this
    }

    pub fn put(&self, key: &ObjectKey, mut value: Value) -> Value {
        let mut state = self.state.lock().unwrap();
        state.revision += 1;
        let revision = state.revision;
        value["metadata"]["resourceVersion"] = json!(revision.to_string());
        let found = state.objects.iter().position(|(k, _)| k == key);
        let kind = match found {
            Some(at) => {
                state.objects[at].1 = value.clone();
                EventType::Modified
            }
            None => {
                state.objects.push((key.clone(), value.clone()));
                EventType::Added
            }
        };
        state.log.push((revision, kind, key.clone(), value.clone()));
        drop(state);
        self.news.send_replace(revision);
        value
    }

    pub fn remove(&self, key: &ObjectKey) -> Option<Value> {
        let mut state = self.state.lock().unwrap();
        let at = state.objects.iter().position(|(k, _)| k == key)?;
        let (_, value) = state.objects.remove(at);
        state.revision += 1;
        let revision = state.revision;
        state.log.push((revision, EventType::Deleted, key.clone(), value.clone()));
        drop(state);
        self.news.send_replace(revision);
        Some(value)
    }

    pub fn get(&self, key: &ObjectKey) -> Option<Value> {
        self.state.lock().unwrap().objects.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone())
    }

    /// Every state of a Pod so far, the oldest first.
    pub fn history(&self, pod: &str) -> Vec<Value> {
        let key = key("Pod", pod);
        self.state.lock().unwrap().log.iter().filter(|(_, _, k, _)| *k == key).map(|(.., v)| v.clone()).collect()
    }

    /// Reasons of the Events about a Pod.
    pub fn reasons(&self, pod: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let events = state.objects.iter().filter(|(k, v)| k.kind == "Event" && v["involvedObject"]["name"] == pod);
        events.map(|(_, v)| v["reason"].as_str().unwrap().to_owned()).collect()
    }

    /// Makes a Pod bound to the node.
    pub fn bind(&self, name: &str, spec: Value) -> String {
        let uid = format!("test-{}-{name}", std::process::id());
        let mut spec = spec;
        spec["nodeName"] = json!("n1");
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "uid": uid},
            "spec": spec,
            "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]}});
        self.put(&key("Pod", name), pod);
        uid
    }

    /// What `trellis delete` does.
    pub fn terminate(&self, name: &str, grace: i64) {
        assert!(self.try_terminate(name, grace), "pod {name} is not there");
    }

    /// False where the Pod is gone already.
    pub fn try_terminate(&self, name: &str, grace: i64) -> bool {
        let key = key("Pod", name);
        let Some(mut pod) = self.get(&key) else { return false };
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        self.put(&key, pod);
        true
    }

    /// Waits until a Pod is as wanted; fails with what it was last.
    pub async fn until(&self, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(30);
        let key = key("Pod", name);
        loop {
            let pod = self.get(&key).unwrap_or(Value::Null);
            if wanted(&pod) {
                return pod;
            }
            assert!(
                Instant::now() < deadline,
                "pod {name} never was {what}: {:#} {:?}",
                pod["status"],
                self.reasons(name)
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn reply(key: ObjectKey, value: &Value) -> Response<ObjectReply> {
    let revision = value["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    let object = Object { key: Some(key), revision, json: serde_json::to_vec(value).unwrap().into() };
    Response::new(ObjectReply { object: Some(object), ..ObjectReply::default() })
}

fn selected(request: &WatchRequest, key: &ObjectKey, value: &Value) -> bool {
    let wanted = request.key.clone().unwrap_or_default();
    let fields = request.field_selector.strip_prefix("spec.nodeName=");
    key.kind == wanted.kind
        && (wanted.name.is_empty() || wanted.name == key.name)
        && fields.is_none_or(|node| value["spec"]["nodeName"] == node)
}

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl resources_server::Resources for FakeControlPlane {
    type WatchStream = Out<WatchEvent>;
    type WriteStream = Out<WriteReply>;

    /// As a member from before there was this call: each write then comes on its own.
    async fn write(&self, _: Request<Streaming<WriteRequest>>) -> Result<Response<Self::WriteStream>, Status> {
        Err(Status::unimplemented("write"))
    }

    async fn create(&self, r: Request<CreateRequest>) -> Result<Response<ObjectReply>, Status> {
        let r = r.into_inner();
        let key = r.key.unwrap();
        if self.get(&key).is_some() {
            return Err(Status::already_exists("there"));
        }
        let value = self.put(&key, serde_json::from_slice(&r.json).unwrap());
        Ok(reply(key, &value))
    }

    async fn get(&self, r: Request<GetRequest>) -> Result<Response<ObjectReply>, Status> {
        let key = r.into_inner().key.unwrap();
        let value = FakeControlPlane::get(self, &key).ok_or_else(|| Status::not_found("none"))?;
        Ok(reply(key, &value))
    }

    async fn update(&self, r: Request<UpdateRequest>) -> Result<Response<ObjectReply>, Status> {
        let r = r.into_inner();
        let key = r.key.unwrap();
        let new: Value = serde_json::from_slice(&r.json).unwrap();
        let mut old = FakeControlPlane::get(self, &key).ok_or_else(|| Status::not_found("none"))?;
        if old["metadata"]["resourceVersion"] != new["metadata"]["resourceVersion"] {
            return Err(Status::aborted("conflict"));
        }
        if r.subresource == "status" {
            old["status"] = new["status"].clone();
        } else {
            old = new;
        }
        let value = self.put(&key, old);
        Ok(reply(key, &value))
    }

    async fn delete(&self, r: Request<DeleteRequest>) -> Result<Response<DeleteReply>, Status> {
        let r = r.into_inner();
        let key = r.key.unwrap();
        let value = FakeControlPlane::get(self, &key).ok_or_else(|| Status::not_found("none"))?;
        assert_eq!(value["metadata"]["uid"], r.uid.as_str(), "an agent deletes by uid");
        assert!(value["metadata"]["deletionTimestamp"].is_string(), "an agent only deletes what terminates");
        self.remove(&key);
        Ok(Response::new(DeleteReply { object: None, removed: true }))
    }

    async fn watch(&self, r: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let request = r.into_inner();
        let (tx, rx) = tokio::sync::mpsc::channel(64);
        let this = self.clone();
        tokio::spawn(async move {
            let mut news = this.news.subscribe();
            let mut from = request.from_revision;
            let mut first = Vec::new();
            if from == 0 {
                let state = this.state.lock().unwrap();
                from = state.revision;
                let found = state.objects.iter().filter(|(k, v)| selected(&request, k, v));
                first.extend(found.map(|(k, v)| (from, EventType::Added, k.clone(), v.clone())));
            }
            let bookmark = (from.max(1), EventType::Bookmark, ObjectKey::default(), Value::Null);
            first.push(bookmark);
            let mut batch = first;
            loop {
                for (revision, kind, key, value) in batch.drain(..) {
                    let object = (kind != EventType::Bookmark).then(|| Object {
                        key: Some(key),
                        revision,
                        json: serde_json::to_vec(&value).unwrap().into(),
                    });
                    let event = WatchEvent { r#type: kind.into(), object, revision };
                    if tx.send(Ok(event)).await.is_err() {
                        return;
                    }
                }
                drop(tokio::time::timeout(Duration::from_secs(5), news.changed()).await);
                let state = this.state.lock().unwrap();
                let new = state.log.iter().filter(|(r, ..)| *r > from);
                batch.extend(new.filter(|(_, _, k, v)| selected(&request, k, v)).cloned());
                from = state.revision;
                batch.push((from, EventType::Bookmark, ObjectKey::default(), Value::Null));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }

    async fn apply(&self, _: Request<ApplyRequest>) -> Result<Response<ObjectReply>, Status> {
        Err(Status::unimplemented("apply"))
    }
    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListReply>, Status> {
        Err(Status::unimplemented("list"))
    }
    async fn patch(&self, _: Request<PatchRequest>) -> Result<Response<ObjectReply>, Status> {
        Err(Status::unimplemented("patch"))
    }
}

#[tonic::async_trait]
impl nodes_server::Nodes for FakeControlPlane {
    async fn renew_lease(&self, _: Request<RenewLeaseRequest>) -> Result<Response<RenewLeaseReply>, Status> {
        Ok(Response::new(RenewLeaseReply { ttl_millis: 1200, term: 1 }))
    }
    async fn report_network(&self, _: Request<ReportNetworkRequest>) -> Result<Response<ReportNetworkReply>, Status> {
        Err(Status::unimplemented("agents do not report the network"))
    }
}
