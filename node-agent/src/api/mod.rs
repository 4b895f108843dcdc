//! All that the agent says to the control plane, over one connection that fails over by itself:
//! [`watch`] and [`refs`] read, [`status`], [`node`], [`lease`], [`events`] and [`renew`] write.
pub mod events;
pub mod kept;
pub mod lease;
pub mod members;
pub mod node;
pub mod refs;
pub mod renew;
pub mod status;
pub mod watch;

use k8s_openapi::api::core::v1::Pod;
use serde::{Serialize, de::DeserializeOwned};
use tonic::{Code, Status};
use trellis_proto::{
    api::{CreateRequest, DeleteRequest, GetRequest, ObjectKey, UpdateRequest},
    client::{Connection, request_id},
};

/// What the control plane can answer besides yes.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The object is not there.
    #[error("{0} not found")]
    NotFound(String),
    /// It changed meanwhile, or another one bears the name.
    #[error("{0} changed meanwhile")]
    Conflict(String),
    /// Anything else.
    #[error("{object}: {}", status.message())]
    Call {
        /// The object.
        object: String,
        /// The answer.
        status: Box<Status>,
    },
    /// The answer, or the object to be sent, is not the JSON it should be.
    #[error("{object}: {source}")]
    Json {
        /// The object.
        object: String,
        /// Why.
        source: serde_json::Error,
    },
}

/// A key in the core group.
pub fn key(kind: &str, namespace: &str, name: &str) -> ObjectKey {
    ObjectKey { group: String::new(), kind: kind.into(), namespace: namespace.into(), name: name.into() }
}

/// `kind namespace/name`, for messages.
pub fn describe(key: &ObjectKey) -> String {
    match key.namespace.as_str() {
        "" => format!("{} {}", key.kind, key.name),
        ns => format!("{} {ns}/{}", key.kind, key.name),
    }
}

fn refused(key: &ObjectKey, status: Status) -> ApiError {
    let reason = trellis_proto::status::details(&status).map(|d| d.reason).unwrap_or_default();
    let object = describe(key);
    match (status.code(), reason.as_str()) {
        (Code::NotFound, _) | (_, "NotFound") => ApiError::NotFound(object),
        (Code::Aborted | Code::FailedPrecondition, "" | "Conflict") | (_, "Conflict") => ApiError::Conflict(object),
        _ => ApiError::Call { object, status: Box::new(status) },
    }
}

fn decode<T: DeserializeOwned>(key: &ObjectKey, json: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(json).map_err(|source| ApiError::Json { object: describe(key), source })
}

/// One object, as fresh as a majority knows it.
pub async fn get<T: DeserializeOwned>(conn: &Connection, key: &ObjectKey) -> Result<T, ApiError> {
    let request = GetRequest { key: Some(key.clone()), consistency: 0 };
    let call = conn.call(|chan| {
        let request = request.clone();
        async move { trellis_proto::api::resources_client::ResourcesClient::new(chan).get(request).await }
    });
    let reply = call.await.map_err(|s| refused(key, s))?.into_inner();
    decode(key, &reply.object.unwrap_or_default().json)
}

/// Creates an object; a lost answer does not make two.
pub async fn create<T: Serialize>(conn: &Connection, key: &ObjectKey, object: &T) -> Result<(), ApiError> {
    let json = serde_json::to_vec(object).map_err(|source| ApiError::Json { object: describe(key), source })?;
    let request = CreateRequest { key: Some(key.clone()), json: json.into(), request_id: request_id(), dry_run: false };
    let call = conn.call(|chan| chan.create(request.clone()));
    call.await.map(drop).map_err(|s| refused(key, s))
}

/// Replaces an object (`subresource` "") or its status ("status"); gives it back as stored.
pub async fn update<T: Serialize + DeserializeOwned>(
    conn: &Connection,
    key: &ObjectKey,
    object: &T,
    subresource: &str,
) -> Result<T, ApiError> {
    let json = serde_json::to_vec(object).map_err(|source| ApiError::Json { object: describe(key), source })?;
    let request = UpdateRequest {
        key: Some(key.clone()),
        json: json.into(),
        subresource: subresource.to_owned(),
        request_id: request_id(),
        dry_run: false,
    };
    let call = conn.call(|chan| chan.update(request.clone()));
    let reply = call.await.map_err(|s| refused(key, s))?;
    decode(key, &reply.object.unwrap_or_default().json)
}

/// Takes a Pod out of the API for good; one that is gone, or whose name another bears, is done.
pub async fn delete_pod(conn: &Connection, pod: &Pod) -> Result<(), ApiError> {
    let meta = &pod.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let key = key("Pod", namespace, meta.name.as_deref().unwrap_or_default());
    let request = DeleteRequest {
        key: Some(key.clone()),
        grace_period_seconds: Some(0),
        uid: meta.uid.clone().unwrap_or_default(),
        revision: 0,
        request_id: request_id(),
        dry_run: false,
        orphan: false,
    };
    let call = conn.call(|chan| chan.delete(request.clone()));
    match call.await.map_err(|s| refused(&key, s)) {
        Ok(_) | Err(ApiError::NotFound(_) | ApiError::Conflict(_)) => Ok(()),
        Err(error) => Err(error),
    }
}
