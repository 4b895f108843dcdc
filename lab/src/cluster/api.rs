//! The cluster's API for a caller that is not async: what the lab itself asks of it.

use std::{path::Path, time::Duration};

use serde_json::Value;
use tokio::runtime::Runtime;
use tonic::{Code, Status};
use trellis_proto::{
    api::{
        ApplyRequest, CreateTokenRequest, DeleteRequest, GetRequest, ListRequest, ObjectKey, RemoveMemberRequest,
        StatusReply, StatusRequest, cluster_client::ClusterClient, resources_client::ResourcesClient,
    },
    client::{Chan, Connection, request_id},
};

use super::contexts;
use crate::{Error, Result};

/// Objects a page; a lab's lists fit one.
const PAGE: u32 = 500;
/// Long enough for a member without a leader to say so (5 s) and for the next one to answer.
const LIMIT: Duration = Duration::from_secs(15);
/// A member leaves only when the others have agreed.
const CHANGE_LIMIT: Duration = Duration::from_secs(60);
/// A token for a join that begins right away.
const TOKEN_TTL: Duration = Duration::from_secs(300);

/// A connection to a lab's API, with a runtime of its own.
pub struct Api {
    runtime: Runtime,
    connection: Connection,
}

/// The identity of one object, from its kind.
#[must_use]
pub fn key(kind: &str, namespace: &str, name: &str) -> ObjectKey {
    let group = match kind {
        "Deployment" | "ReplicaSet" => "apps",
        "NetworkPolicy" => "networking.k8s.io",
        _ => "",
    };
    ObjectKey { group: group.to_owned(), kind: kind.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() }
}

impl Api {
    /// As the administrator whose context the file holds.
    pub fn open(context_file: &Path) -> Result<Self> {
        let bad = |why: String| Error::Format { what: context_file.display().to_string(), why };
        let connection = contexts::read(context_file)?.connect("lab").map_err(|e| bad(e.to_string()))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(Error::io("start a runtime"))?;
        Ok(Self { runtime, connection })
    }

    /// The connection, for who is async.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The runtime, for who watches beside.
    #[must_use]
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// One call, on whichever member answers it.
    fn call<Q, T, F, Fut>(&self, limit: Duration, request: Q, method: F) -> std::result::Result<T, Status>
    where
        Q: Clone,
        F: Fn(Chan, Q) -> Fut,
        Fut: Future<Output = std::result::Result<tonic::Response<T>, Status>>,
    {
        let reply = self.connection.call_within(limit, |chan| method(chan, request.clone()));
        self.runtime.block_on(reply).map(tonic::Response::into_inner)
    }

    /// All objects of a kind (in a namespace, or everywhere when it is empty) that the selector
    /// takes.
    pub fn list(&self, kind: &str, namespace: &str, selector: &str) -> Result<Vec<Value>> {
        let request = ListRequest {
            key: Some(key(kind, namespace, "")),
            label_selector: selector.to_owned(),
            limit: PAGE,
            ..ListRequest::default()
        };
        let what = format!("list {kind}s");
        let reply = self.call(LIMIT, request, |c, q| async move { ResourcesClient::new(c).list(q).await });
        reply.map_err(Error::api(what.clone()))?.items.iter().map(|o| parse(&what, &o.json)).collect()
    }

    /// One object; none when there is none of that name.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Result<Option<Value>> {
        let request = GetRequest { key: Some(key(kind, namespace, name)), ..GetRequest::default() };
        let what = format!("get {kind} {name}");
        match self.call(LIMIT, request, |c, q| async move { ResourcesClient::new(c).get(q).await }) {
            Ok(reply) => reply.object.map(|o| parse(&what, &o.json)).transpose(),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(Error::api(what)(status)),
        }
    }

    /// Applies a manifest in namespace "default" unless it names another.
    pub fn apply(&self, manifest: &Value) -> Result<()> {
        let kind = manifest["kind"].as_str().unwrap_or_default();
        let name = manifest["metadata"]["name"].as_str().unwrap_or_default();
        let namespace = match kind {
            "Namespace" | "Node" => "",
            _ => manifest["metadata"]["namespace"].as_str().unwrap_or("default"),
        };
        let what = format!("apply {kind} {name}");
        let json =
            serde_json::to_vec(manifest).map_err(|e| Error::Format { what: what.clone(), why: e.to_string() })?;
        let request = ApplyRequest {
            key: Some(key(kind, namespace, name)),
            json: json.into(),
            request_id: request_id(),
            dry_run: false,
        };
        let reply = self.call(LIMIT, request, |c, q| async move { ResourcesClient::new(c).apply(q).await });
        reply.map(drop).map_err(Error::api(what))
    }

    /// Deletes an object; none of that name is fine.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str, grace_seconds: Option<i64>) -> Result<()> {
        let request = DeleteRequest {
            key: Some(key(kind, namespace, name)),
            grace_period_seconds: grace_seconds,
            request_id: request_id(),
            ..DeleteRequest::default()
        };
        match self.call(LIMIT, request, |c, q| async move { ResourcesClient::new(c).delete(q).await }) {
            Err(status) if status.code() != Code::NotFound => Err(Error::api(format!("delete {kind} {name}"))(status)),
            _ => Ok(()),
        }
    }

    /// The control plane's members and who leads.
    pub fn status(&self) -> Result<StatusReply> {
        let reply = self.call(LIMIT, StatusRequest {}, |c, q| async move { ClusterClient::new(c).status(q).await });
        reply.map_err(Error::api("cluster status"))
    }

    /// A token for one join.
    pub fn token(&self, control_plane: bool) -> Result<String> {
        let request = CreateTokenRequest { ttl_seconds: TOKEN_TTL.as_secs(), control_plane };
        let reply = self.call(LIMIT, request, |c, q| async move { ClusterClient::new(c).create_token(q).await });
        reply.map(|r| r.token).map_err(Error::api("create a join token"))
    }

    /// Removes a member of the control plane.
    pub fn remove_member(&self, name: &str) -> Result<()> {
        let request = RemoveMemberRequest { member: name.to_owned() };
        let reply =
            self.call(CHANGE_LIMIT, request, |c, q| async move { ClusterClient::new(c).remove_member(q).await });
        reply.map(drop).map_err(Error::api(format!("remove member {name}")))
    }

    /// Names of the Nodes that are Ready.
    pub fn ready_nodes(&self) -> Result<Vec<String>> {
        let nodes = self.list("Node", "", "")?;
        let ready = nodes.iter().filter(|n| condition(n, "Ready") == Some("True"));
        Ok(ready.filter_map(|n| n["metadata"]["name"].as_str().map(str::to_owned)).collect())
    }
}

/// The status of an object's condition.
#[must_use]
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|c| c["type"] == kind)?["status"].as_str()
}

fn parse(what: &str, json: &[u8]) -> Result<Value> {
    serde_json::from_slice(json).map_err(|e| Error::Format { what: what.to_owned(), why: e.to_string() })
}
