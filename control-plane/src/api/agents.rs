//! Reaching node agents: which node a Pod is on, where that node is, and a channel to its agent.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use tonic::transport::Channel;
use tonic::{Code, Status};
use trellis_model::k8s_openapi::api::core::v1::Pod;
use trellis_model::{Kind, Object};
use trellis_proto::identity::agent_server_name;
use trellis_proto::tls::{ClientTls, Credentials};
use trellis_proto::{client, ports};

use super::ops::{ApiError, Ops, Target, encode};
use super::status::status;

/// Channels kept; a channel to a node that is not called any more goes when this is reached.
const MAX_CHANNELS: usize = 256;

/// A cached channel, and the address it leads to.
type Channels = Mutex<HashMap<String, (SocketAddr, Channel)>>;

/// Dials node agents with this member's certificate.
#[derive(Clone)]
pub struct Agents {
    ops: Ops,
    credentials: Arc<Credentials>,
    channels: Arc<Channels>,
}

impl std::fmt::Debug for Agents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agents").finish_non_exhaustive()
    }
}

/// A Pod's agent.
#[derive(Debug)]
pub struct PodAgent {
    /// The node it is bound to.
    pub node: String,
    /// Leads to the agent there.
    pub channel: Channel,
    /// The Pod.
    pub pod: Pod,
}

impl Agents {
    /// Finds Pods and Nodes through `ops`.
    pub fn new(ops: Ops, credentials: Arc<Credentials>) -> Self {
        Self { ops, credentials, channels: Arc::default() }
    }

    /// The agent of a Pod's node.
    ///
    /// # Errors
    /// NOT_FOUND for the Pod or its Node, INVALID_ARGUMENT when it is not scheduled.
    pub async fn of_pod(&self, namespace: &str, name: &str) -> Result<PodAgent, Status> {
        self.ops.backend().read_barrier().await.map_err(status)?;
        let object = self.read(&Target::new(Kind::Pod, namespace, name))?;
        let Object::Pod(pod) = object else {
            return Err(status(ApiError::not_found(Kind::Pod, name)));
        };
        let node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
        if node.is_empty() {
            return Err(status(ApiError::BadRequest(format!(
                "pod {name} does not have a host assigned: it is not scheduled yet (see `trellis \
                 describe pod {name} -n {namespace}`)"
            ))));
        }
        let channel = self.channel(&node)?;
        Ok(PodAgent { node, channel, pod: *pod })
    }

    /// The agent of a node.
    ///
    /// # Errors
    /// NOT_FOUND for the Node, FAILED_PRECONDITION when it has no address.
    pub async fn of_node(&self, node: &str) -> Result<Channel, Status> {
        self.ops.backend().read_barrier().await.map_err(status)?;
        self.channel(node)
    }

    /// The agent of a node, on a connection of its own for what is sent in bulk.
    ///
    /// # Errors
    /// Those of [`Agents::of_node`].
    pub async fn of_node_for_bulk(&self, node: &str) -> Result<Channel, Status> {
        self.ops.backend().read_barrier().await.map_err(status)?;
        let address = SocketAddr::new(self.address(node)?, ports::AGENT);
        client::bulk_channel(&format!("https://{address}"), &self.tls(node)?)
    }

    /// The names of all Nodes.
    pub fn nodes(&self) -> Vec<String> {
        let (mut lists, _) = self.ops.store().list_kinds(&[Kind::Node.name()]);
        lists.pop().unwrap_or_default().iter().map(|n| n.key.name.clone()).collect()
    }

    fn read(&self, target: &Target) -> Result<Object, Status> {
        let found = self.ops.store().get(&target.key());
        let found = found.ok_or_else(|| status(ApiError::not_found(target.kind, &target.name)))?;
        encode::decode(&found, self.ops.admission().sealer()).map_err(status)
    }

    fn channel(&self, node: &str) -> Result<Channel, Status> {
        let address = SocketAddr::new(self.address(node)?, ports::AGENT);
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, channel)) = channels.get(node)
            && *known == address
        {
            return Ok(channel.clone());
        }
        let tls = self.tls(node)?;
        let channel = client::channel(&format!("https://{address}"), &tls)?;
        if channels.len() >= MAX_CHANNELS {
            channels.clear();
        }
        channels.insert(node.to_owned(), (address, channel.clone()));
        Ok(channel)
    }

    fn tls(&self, node: &str) -> Result<ClientTls, Status> {
        let tls = ClientTls::new(&self.credentials, &agent_server_name(node));
        tls.map_err(|e| status(ApiError::Internal(e.to_string())))
    }

    fn address(&self, node: &str) -> Result<IpAddr, Status> {
        let object = self.read(&Target::new(Kind::Node, "", node))?;
        let Object::Node(object) = object else {
            return Err(status(ApiError::not_found(Kind::Node, node)));
        };
        let addresses = object.status.and_then(|s| s.addresses).unwrap_or_default();
        let internal = addresses.iter().find(|a| a.type_ == "InternalIP");
        internal.and_then(|a| a.address.parse().ok()).ok_or_else(|| {
            let message = format!("node {node} has told no InternalIP yet: its agent is not there");
            status(ApiError::Unreachable(message))
        })
    }
}

/// What the agent answered; a broken connection becomes a word about the node.
pub fn explain(node: &str, refused: Status) -> Status {
    let broken = matches!(refused.code(), Code::Unavailable | Code::Unknown)
        && trellis_proto::status::details(&refused).is_none();
    if !broken {
        return refused;
    }
    status(ApiError::Unreachable(format!(
        "the agent of node {node} cannot be reached ({}): the node may be down (see `trellis get \
         nodes`)",
        refused.message()
    )))
}

/// The container that a call means: the one named, or the only one.
///
/// # Errors
/// INVALID_ARGUMENT naming the containers there are.
pub fn container(pod: &Pod, asked: &str) -> Result<String, Status> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let spec = pod.spec.as_ref();
    let regular: Vec<&str> = spec.iter().flat_map(|s| &s.containers).map(|c| c.name.as_str()).collect();
    let init = spec.iter().flat_map(|s| s.init_containers.iter().flatten());
    let known = |asked: &str| regular.contains(&asked) || init.clone().any(|c| c.name == asked);
    match (asked, regular.as_slice()) {
        ("", [only]) => Ok((*only).to_owned()),
        ("", many) => Err(status(ApiError::BadRequest(format!(
            "a container name must be specified for pod {name}, choose one of: [{}]",
            many.join(" ")
        )))),
        (asked, _) if known(asked) => Ok(asked.to_owned()),
        (asked, many) => Err(status(ApiError::BadRequest(format!(
            "container {asked} is not valid for pod {name}, choose one of: [{}]",
            many.join(" ")
        )))),
    }
}
