//! The Pods service: streams that end at the node agent. This member looks the Pod up, dials
//! its node's agent, and passes messages through; flow control reaches from end to end, since
//! nothing is read before it can be written on.

use std::pin::Pin;

use futures::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};
use trellis_proto::api;
use trellis_proto::api::pods_client::PodsClient;
use trellis_proto::api::pods_server::Pods;

use super::agents::{Agents, container, explain};
use super::onward;
use super::ops::ApiError;
use super::session::Limits;
use super::status::status;

/// The service.
#[derive(Debug, Clone)]
pub struct PodsService {
    agents: Agents,
    limits: Limits,
}

type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl PodsService {
    /// Reaching agents through `agents`.
    pub fn new(agents: Agents, limits: Limits) -> Self {
        Self { agents, limits }
    }
}

/// Passes the agent's answers on, holding the caller's place and what else lasts as long as they.
fn pass<T: Send + 'static>(node: String, from: Streaming<T>, held: impl Send + 'static) -> Boxed<T> {
    Box::pin(from.map(move |message| {
        let _held = &held;
        message.map_err(|e| explain(&node, e))
    }))
}

fn missing(what: &str) -> Status {
    status(ApiError::BadRequest(format!("the first message must be {what}")))
}

#[tonic::async_trait]
impl Pods for PodsService {
    type LogsStream = Boxed<api::LogChunk>;

    async fn logs(&self, request: Request<api::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let (_, permit) = self.limits.trusted(&request, "reading logs")?;
        let mut r = request.into_inner();
        let agent = self.agents.of_pod(&r.namespace, &r.pod).await?;
        r.container = container(&agent.pod, &r.container)?;
        let answer = PodsClient::new(agent.channel).logs(r).await;
        let from = answer.map_err(|e| explain(&agent.node, e))?.into_inner();
        Ok(Response::new(pass(agent.node, from, permit)))
    }

    type ExecStream = Boxed<api::ExecOutput>;

    async fn exec(&self, request: Request<Streaming<api::ExecInput>>) -> Result<Response<Self::ExecStream>, Status> {
        let (caller, permit) = self.limits.trusted(&request, "exec")?;
        let mut input = request.into_inner();
        let first = input.message().await?.and_then(|m| m.input);
        let Some(api::exec_input::Input::Start(mut start)) = first else {
            return Err(missing("the start of the exec"));
        };
        let agent = self.agents.of_pod(&start.namespace, &start.pod).await?;
        start.container = container(&agent.pod, &start.container)?;
        let api::ExecStart { namespace, pod, container, .. } = &start;
        tracing::info!(%caller, %namespace, %pod, %container, node = %agent.node, "exec");
        let first = api::ExecInput { input: Some(api::exec_input::Input::Start(start)) };
        let (channel, guard) = onward::breakable(agent.channel);
        let answer = PodsClient::new(channel).exec(onward::messages(first, input)).await;
        let from = answer.map_err(|e| explain(&agent.node, e))?.into_inner();
        Ok(Response::new(pass(agent.node, from, (permit, guard))))
    }

    type PortForwardStream = Boxed<api::PortForwardData>;

    async fn port_forward(
        &self,
        request: Request<Streaming<api::PortForwardData>>,
    ) -> Result<Response<Self::PortForwardStream>, Status> {
        let (_, permit) = self.limits.trusted(&request, "port-forward")?;
        let mut input = request.into_inner();
        let first = input.message().await?.ok_or_else(|| missing("the start of the forward"))?;
        let Some(start) = &first.start else {
            return Err(missing("the start of the forward"));
        };
        let agent = self.agents.of_pod(&start.namespace, &start.pod).await?;
        let (channel, guard) = onward::breakable(agent.channel);
        let answer = PodsClient::new(channel).port_forward(onward::messages(first, input)).await;
        let from = answer.map_err(|e| explain(&agent.node, e))?.into_inner();
        Ok(Response::new(pass(agent.node, from, (permit, guard))))
    }
}
