//! The Images service: the same two hops as Pods.

use futures::{StreamExt as _, stream};
use tonic::{Request, Response, Status, Streaming};
use trellis_proto::api;
use trellis_proto::api::images_client::ImagesClient;
use trellis_proto::api::images_server::Images;

use super::agents::{Agents, explain};
use super::onward;
use super::ops::ApiError;
use super::session::Limits;
use super::status::status;

/// Nodes asked at once for the list of all images.
const NODES_AT_ONCE: usize = 16;

/// The service.
#[derive(Debug, Clone)]
pub struct ImagesService {
    agents: Agents,
    limits: Limits,
}

impl ImagesService {
    /// Reaching agents through `agents`.
    pub fn new(agents: Agents, limits: Limits) -> Self {
        Self { agents, limits }
    }

    async fn of_node(&self, node: String) -> Result<Vec<api::Image>, Status> {
        let channel = self.agents.of_node(&node).await?;
        let request = api::ListImagesRequest { node: node.clone() };
        let mut client =
            ImagesClient::new(channel).max_decoding_message_size(trellis_proto::client::MESSAGE_LIMIT_BYTES);
        let answer = client.list(request).await.map_err(|e| explain(&node, e))?;
        Ok(answer.into_inner().images)
    }
}

#[tonic::async_trait]
impl Images for ImagesService {
    async fn import(
        &self,
        request: Request<Streaming<api::ImportRequest>>,
    ) -> Result<Response<api::ImportReply>, Status> {
        let (_, _permit) = self.limits.trusted(&request, "importing an image")?;
        let mut input = request.into_inner();
        let first = input.message().await?;
        let Some(first) = first.filter(|m| !m.node.is_empty()) else {
            let message = "the first message must name the node to import to".to_owned();
            return Err(status(ApiError::BadRequest(message)));
        };
        let node = first.node.clone();
        let channel = self.agents.of_node_for_bulk(&node).await?;
        let (channel, _guard) = onward::breakable(channel);
        ImagesClient::new(channel).import(onward::messages(first, input)).await.map_err(|e| explain(&node, e))
    }

    /// Of one node, or, when none is named, of all that answer.
    async fn list(&self, request: Request<api::ListImagesRequest>) -> Result<Response<api::ListImagesReply>, Status> {
        let (_, _permit) = self.limits.trusted(&request, "listing images")?;
        let node = request.into_inner().node;
        if !node.is_empty() {
            let images = self.of_node(node).await?;
            return Ok(Response::new(api::ListImagesReply { images }));
        }
        let nodes = self.agents.nodes();
        let answers: Vec<_> = stream::iter(nodes)
            .map(|node| async move {
                let answer = self.of_node(node.clone()).await;
                (node, answer)
            })
            .buffer_unordered(NODES_AT_ONCE)
            .collect()
            .await;
        let mut images = Vec::new();
        for (node, answer) in answers {
            match answer {
                Ok(of_node) => images.extend(of_node),
                Err(error) => tracing::warn!(node, %error, "its images are left out of a list"),
            }
        }
        images.sort_by(|a, b| (&a.node, &a.names).cmp(&(&b.node, &b.names)));
        Ok(Response::new(api::ListImagesReply { images }))
    }
}
