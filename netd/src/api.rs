//! The control plane's side: lists and watches into the engine, reports back.
//!
//! One watch follows all kinds, so that they are known in the order of their revisions: when a Pod
//! is told of, so are the policies and Namespaces from before it. It begins with everything there is
//! at one revision; a broken watch goes on from the last revision on another member, and one whose
//! revision was compacted away begins anew.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tonic::{Code, Status};
use trellis_proto::api::nodes_client::NodesClient;
use trellis_proto::api::{EventType, Object, ObjectKey, Projection, ReportNetworkRequest, UnroutedPeer, WatchRequest};
use trellis_proto::client::Connection;
use trellis_proto::patience::stretched;

use crate::cluster::{Incoming, Kind};
use crate::engine::{Event, Unrouted};

/// Bookmarks come every 5 s: a stream silent for longer hangs on a dead or deaf member.
const SILENCE: Duration = Duration::from_secs(12);
/// Before trying again after a failure, doubling up to the maximum: the worst that a failover may
/// wait for netd, whatever failed before it.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(400);
/// netd reports which revision it acted on this often (an address is freed by it), and learns
/// that the control plane answers.
const REPORT_PERIOD: Duration = Duration::from_secs(1);

/// Follows all kinds until the engine is gone.
pub async fn follow(connection: Connection, events: mpsc::Sender<Event>) {
    let mut pause = PAUSE_MIN;
    // 0: everything there is must be told first.
    let mut heard = 0;
    loop {
        let member = connection.in_use();
        let (begun, from) = (Instant::now(), heard);
        let failure = stream(&connection, &mut heard, &events).await;
        // A watch that lasted was no failed try, even if nothing happened meanwhile.
        if heard > from || begun.elapsed() > PAUSE_MAX {
            pause = PAUSE_MIN;
        }
        if events.is_closed() {
            return;
        }
        if failure.code() == Code::OutOfRange {
            heard = 0;
        } else {
            connection.leave(member);
        }
        tracing::debug!(error = %failure.message(), "watch ended; trying again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Reads a watch until it fails; `heard` is moved on with every event.
async fn stream(connection: &Connection, heard: &mut u64, events: &mpsc::Sender<Event>) -> Status {
    let request = WatchRequest {
        kinds: Kind::ALL.map(key).into(),
        from_revision: *heard,
        projection: Projection::Network.into(),
        ..WatchRequest::default()
    };
    let silent = || Status::deadline_exceeded("the watch was silent for 12 s");
    let opened = tokio::time::timeout(SILENCE, connection.resources().watch(request)).await;
    let mut stream = match opened {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return status,
        Err(_) => return silent(),
    };
    // What there is, until the first bookmark says that it is everything.
    let mut there = (*heard == 0).then(BTreeMap::<Kind, Vec<Incoming>>::new);
    loop {
        let message = match tokio::time::timeout(SILENCE, stream.message()).await {
            Ok(Ok(Some(message))) => message,
            Ok(Ok(None)) => return Status::unavailable("the watch ended"),
            Ok(Err(status)) => return status,
            Err(_) => return silent(),
        };
        let revision = message.revision.max(message.object.as_ref().map_or(0, |object| object.revision));
        let event = match (message.r#type(), message.object.and_then(incoming)) {
            (EventType::Added, Some((kind, object))) if there.is_some() => {
                there.get_or_insert_default().entry(kind).or_default().push(object);
                continue;
            }
            (EventType::Added | EventType::Modified, Some((kind, object))) => Event::Changed { kind, revision, object },
            (EventType::Deleted, Some((kind, object))) => Event::Removed { kind, revision, object },
            (EventType::Bookmark, _) => match there.take() {
                Some(there) => listed(there, revision),
                None => Event::Bookmark { revision },
            },
            (other, _) => return Status::internal(format!("{other:?} event without an object that netd knows")),
        };
        if events.send(event).await.is_err() {
            return Status::cancelled("netd is stopping");
        }
        *heard = (*heard).max(revision);
    }
}

/// A kind of which nothing was told has nothing.
fn listed(mut objects: BTreeMap<Kind, Vec<Incoming>>, revision: u64) -> Event {
    for kind in Kind::ALL {
        let count = objects.entry(kind).or_default().len();
        tracing::info!(?kind, revision, objects = count, "listed");
    }
    Event::Listed { revision, objects }
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

fn incoming(object: Object) -> Option<(Kind, Incoming)> {
    let key = object.key?;
    let kind = Kind::ALL.into_iter().find(|kind| kind.group_and_name() == (&*key.group, &*key.kind))?;
    Some((kind, Incoming { namespace: key.namespace, name: key.name, json: object.json.to_vec() }))
}
