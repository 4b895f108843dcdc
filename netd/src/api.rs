//! The control plane's side: lists and watches into the engine, reports back.
//!
//! Each kind is listed, then watched from the list's revision; a broken watch goes on from the
//! last revision on another member, a revision that was compacted away brings a new list.

use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tonic::{Code, Status};
use trellis_proto::api::nodes_client::NodesClient;
use trellis_proto::api::resources_client::ResourcesClient;
use trellis_proto::api::{
    Consistency, EventType, ListRequest, Object, ObjectKey, Projection, ReportNetworkRequest, UnroutedPeer,
    WatchRequest,
};
use trellis_proto::client::{Connection, MESSAGE_LIMIT_BYTES};
use trellis_proto::patience::stretched;

use crate::cluster::{Incoming, Kind};
use crate::engine::{Event, Unrouted};

/// Bookmarks come every 5 s: a stream silent for longer hangs on a dead or deaf member.
const SILENCE: Duration = Duration::from_secs(12);
const LIST_PAGE: u32 = 500;
/// Before trying again after a failure, doubling up to the maximum: the worst that a failover may
/// wait for netd, whatever failed before it.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(400);
/// netd reports which revision it acted on this often (an address is freed by it), and learns
/// that the control plane answers.
const REPORT_PERIOD: Duration = Duration::from_secs(1);

/// Follows one kind until the engine is gone.
pub async fn follow(connection: Connection, kind: Kind, events: mpsc::Sender<Event>) {
    let mut pause = PAUSE_MIN;
    let mut revision: Option<u64> = None;
    loop {
        let member = connection.in_use();
        let begun = Instant::now();
        let from = match revision {
            Some(revision) => Ok(revision),
            None => list(&connection, kind, &events).await,
        };
        let failure = match from {
            Ok(from) => {
                let mut heard = from;
                let failure = stream(&connection, kind, &mut heard, &events).await;
                // A watch that lasted was no failed try, even if nothing happened meanwhile.
                if heard > from || begun.elapsed() > PAUSE_MAX {
                    pause = PAUSE_MIN;
                }
                revision = Some(heard);
                failure
            }
            Err(status) => status,
        };
        if events.is_closed() {
            return;
        }
        if failure.code() == Code::OutOfRange {
            revision = None;
        } else {
            connection.leave(member);
        }
        tracing::debug!(?kind, error = %failure.message(), "watch ended; trying again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

async fn list(connection: &Connection, kind: Kind, events: &mpsc::Sender<Event>) -> Result<u64, Status> {
    let mut objects = Vec::new();
    let mut continue_token = String::new();
    loop {
        let request = ListRequest {
            key: Some(key(kind)),
            limit: LIST_PAGE,
            continue_token: continue_token.clone(),
            consistency: Consistency::Linearizable.into(),
            projection: projection(kind).into(),
            ..ListRequest::default()
        };
        let page = connection
            .call(|chan| {
                let request = request.clone();
                async move {
                    let mut client = ResourcesClient::new(chan).max_decoding_message_size(MESSAGE_LIMIT_BYTES);
                    client.list(request).await.map(tonic::Response::into_inner)
                }
            })
            .await?;
        objects.extend(page.items.into_iter().filter_map(incoming));
        if page.continue_token.is_empty() {
            let revision = page.revision;
            tracing::info!(?kind, revision, objects = objects.len(), "listed");
            send(events, Event::Listed { kind, revision, objects }).await?;
            return Ok(revision);
        }
        continue_token = page.continue_token;
    }
}

/// Reads a watch until it fails; `heard` is moved on with every event.
async fn stream(connection: &Connection, kind: Kind, heard: &mut u64, events: &mpsc::Sender<Event>) -> Status {
    let request = WatchRequest {
        key: Some(key(kind)),
        from_revision: *heard,
        projection: projection(kind).into(),
        ..WatchRequest::default()
    };
    let silent = || Status::deadline_exceeded("the watch was silent for 12 s");
    let opened = tokio::time::timeout(SILENCE, connection.resources().watch(request)).await;
    let mut stream = match opened {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return status,
        Err(_) => return silent(),
    };
    loop {
        let message = match tokio::time::timeout(SILENCE, stream.message()).await {
            Ok(Ok(Some(message))) => message,
            Ok(Ok(None)) => return Status::unavailable("the watch ended"),
            Ok(Err(status)) => return status,
            Err(_) => return silent(),
        };
        let revision = message.revision.max(message.object.as_ref().map_or(0, |object| object.revision));
        let event = match (message.r#type(), message.object.and_then(incoming)) {
            (EventType::Added | EventType::Modified, Some(object)) => Event::Changed { kind, revision, object },
            (EventType::Deleted, Some(object)) => Event::Removed { kind, revision, object },
            (EventType::Bookmark, _) => Event::Bookmark { kind, revision },
            (other, _) => return Status::internal(format!("{other:?} event without an object")),
        };
        if let Err(status) = send(events, event).await {
            return status;
        }
        *heard = (*heard).max(revision);
    }
}

/// Tells the leader which revision this node acted on, and which nodes no route leads to, every second, until the engine is gone.
pub async fn report(
    connection: Connection,
    node: String,
    applied: watch::Receiver<u64>,
    unrouted: watch::Receiver<Unrouted>,
    events: mpsc::Sender<Event>,
) {
    let mut period = tokio::time::interval(REPORT_PERIOD);
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !events.is_closed() {
        period.tick().await;
        let request = report_of(&node, *applied.borrow(), &unrouted.borrow());
        let answer = connection
            .call_within(stretched(REPORT_PERIOD * 2), |chan| {
                let request = request.clone();
                async move { NodesClient::new(chan).report_network(request).await.map(tonic::Response::into_inner) }
            })
            .await;
        match answer {
            Ok(reply) => {
                let _ = events.send(Event::MinApplied(reply.min_applied_revision)).await;
            }
            Err(status) => tracing::debug!(error = %status.message(), "cannot report to the control plane"),
        }
    }
}

fn report_of(node: &str, applied_revision: u64, unrouted: &Unrouted) -> ReportNetworkRequest {
    let peers = unrouted.peers.iter();
    ReportNetworkRequest {
        node: node.to_owned(),
        applied_revision,
        network: unrouted.network.map(|network| network.to_string()).unwrap_or_default(),
        unrouted_peers: peers.map(|(node, ip)| UnroutedPeer { node: node.clone(), address: ip.to_string() }).collect(),
    }
}

fn key(kind: Kind) -> ObjectKey {
    let (group, name) = kind.group_and_name();
    ObjectKey { group: group.into(), kind: name.into(), namespace: String::new(), name: String::new() }
}

fn projection(kind: Kind) -> Projection {
    if kind == Kind::Pod { Projection::Network } else { Projection::Full }
}

fn incoming(object: Object) -> Option<Incoming> {
    let key = object.key?;
    Some(Incoming { namespace: key.namespace, name: key.name, json: object.json.to_vec() })
}

async fn send(events: &mpsc::Sender<Event>, event: Event) -> Result<(), Status> {
    events.send(event).await.map_err(|_| Status::cancelled("netd is stopping"))
}
