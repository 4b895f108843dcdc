//! The network projection of Pods: all of a Pod that a netd may know, and needs.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::ApiError;
use crate::store::{Versioned, splice_revision};

// Read borrowing from the Pod's JSON and written back as it stood: nothing is parsed twice.
#[derive(Serialize, Deserialize)]
struct PodView<'a> {
    #[serde(rename = "apiVersion", borrow)]
    api_version: Cow<'a, str>,
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    metadata: MetadataView<'a>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    spec: Option<SpecView<'a>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    status: Option<StatusView<'a>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct MetadataView<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    namespace: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    uid: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    labels: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    deletion_timestamp: Option<Cow<'a, str>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpecView<'a> {
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    node_name: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_network: Option<bool>,
    #[serde(borrow)]
    containers: Vec<ContainerView<'a>>,
    // Sidecars have ports as well.
    #[serde(borrow, default, skip_serializing_if = "Vec::is_empty")]
    init_containers: Vec<ContainerView<'a>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerView<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    restart_policy: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    ports: Option<&'a RawValue>,
}

#[derive(Serialize, Deserialize)]
struct StatusView<'a> {
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    phase: Option<Cow<'a, str>>,
    #[serde(rename = "podIP", borrow, skip_serializing_if = "Option::is_none")]
    pod_ip: Option<Cow<'a, str>>,
    #[serde(rename = "podIPs", borrow, skip_serializing_if = "Option::is_none")]
    pod_ips: Option<&'a RawValue>,
}

/// The network projection of a stored Pod, at `revision`.
///
/// # Errors
/// [`ApiError::Internal`] when what is stored is no Pod.
pub(super) fn network(pod: &Versioned, revision: u64) -> Result<Bytes, ApiError> {
    let broken = |e: serde_json::Error| ApiError::Internal(format!("{}: {e}", pod.key));
    let view: PodView<'_> = serde_json::from_slice(&pod.object.json).map_err(broken)?;
    let json = serde_json::to_vec(&view).map_err(broken)?;
    // The view begins as the object itself does.
    Ok(splice_revision(&json, pod.object.splice_at, revision))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use crate::store::{Index, Key, Stored};
    use serde_json::{Value, json};

    #[test]
    fn nothing_but_the_network_shows() {
        let text = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"annotations":{"a":"secret"},"labels":{"app":"we\"b"},"name":"p","namespace":"d","uid":"u"},"spec":{"containers":[{"command":["secret"],"image":"i","name":"c","ports":[{"containerPort":80,"name":"http"}]}],"initContainers":[{"args":["secret"],"image":"i","name":"side","ports":[{"containerPort":90,"name":"metrics"}],"restartPolicy":"Always"}],"nodeName":"n1","volumes":[{"name":"secret"}]},"status":{"phase":"Running","podIP":"10.0.0.1","podIPs":[{"ip":"10.0.0.1"}],"hostIP":"secret"}}"#;
        let splice_at = u32::try_from(text.find("\"annotations\"").unwrap()).unwrap();
        let stored = Stored { json: text.into(), splice_at, index: Index::default(), sealed: false };
        let key = Key::new("", "Pod", "d", "p");
        let pod = Versioned { key, revision: 5, create_revision: 5, object: stored };
        let got: Value = serde_json::from_slice(&network(&pod, 5).unwrap()).unwrap();
        let expected = json!({"apiVersion":"v1","kind":"Pod",
            "metadata":{"resourceVersion":"5","name":"p","namespace":"d","uid":"u","labels":{"app":"we\"b"}},
            "spec":{"nodeName":"n1","containers":[{"name":"c","ports":[{"containerPort":80,"name":"http"}]}],
                    "initContainers":[{"name":"side","restartPolicy":"Always","ports":[{"containerPort":90,"name":"metrics"}]}]},
            "status":{"phase":"Running","podIP":"10.0.0.1","podIPs":[{"ip":"10.0.0.1"}]}});
        assert_eq!(got, expected);
        let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(got).unwrap();
        let seen = trellis_model::policy::PodView::from_pod(&pod);
        let port = |name| seen.port_named(name, trellis_model::policy::Protocol::Tcp);
        assert_eq!((port("http"), port("metrics")), (Some(80), Some(90)), "a policy finds both by name");
    }
}
