//! Following objects: list and watch in one, resumed where it broke.
use super::{decode, describe};
use serde::de::DeserializeOwned;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tonic::Code;
use trellis_proto::{
    api::{EventType, ObjectKey, WatchEvent, WatchRequest},
    client::Connection,
};

/// A watch sends something at least every 5 s; silent for longer than twice that, it is dead.
const SILENCE_MAX: Duration = Duration::from_secs(12);
/// Between two tries, doubling up to the maximum: the worst that a failover may wait for the
/// agent, whatever failed before it.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_millis(400);

/// What a follower is told.
#[derive(Debug)]
pub enum Item<T> {
    /// A list begins: what is not told again before [`Item::Synced`] is gone.
    Relist,
    /// There it is, in its present state.
    Present(T),
    /// It has been removed; its last state.
    Gone(T),
    /// Everything up to now has been told.
    Synced,
}

/// Why a watch ended for good.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// Not allowed, or not understood.
    #[error("watching {what}: {message}")]
    Refused {
        /// What was asked for.
        what: String,
        /// The answer.
        message: String,
    },
}

/// Follows what `key` and `field_selector` select and sends it on, until the receiver is dropped or
/// the watch is refused for good.
pub async fn follow<T: DeserializeOwned + Send>(
    conn: Connection,
    key: ObjectKey,
    field_selector: String,
    tx: mpsc::Sender<Item<T>>,
) -> Result<(), WatchError> {
    let mut from = 0;
    let mut pause = RETRY_MIN;
    loop {
        let (before, begun) = (from, Instant::now());
        let end = tokio::select! {
            () = tx.closed() => return Ok(()),
            end = session(&conn, &key, &field_selector, &mut from, &tx) => end,
        };
        match end {
            End::Receiver => return Ok(()),
            End::Expired => from = 0,
            End::Refused(message) => return Err(WatchError::Refused { what: describe(&key), message }),
            End::Broken(why) => tracing::debug!(what = describe(&key), why, from, "watch broke: resuming"),
        }
        // A watch that lasted was no failed try, even if nothing happened meanwhile.
        if from > before || begun.elapsed() > RETRY_MAX {
            pause = RETRY_MIN;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

enum End {
    Receiver,
    /// The revision is compacted away: begin again with a list.
    Expired,
    Refused(String),
    Broken(String),
}

async fn session<T: DeserializeOwned + Send>(
    conn: &Connection,
    key: &ObjectKey,
    field_selector: &str,
    from: &mut u64,
    tx: &mpsc::Sender<Item<T>>,
) -> End {
    let request = WatchRequest {
        key: Some(key.clone()),
        field_selector: field_selector.to_owned(),
        from_revision: *from,
        ..WatchRequest::default()
    };
    let member = conn.in_use();
    let mut client = conn.resources();
    let mut stream = match tokio::time::timeout(SILENCE_MAX, client.watch(request)).await {
        Ok(Ok(reply)) => reply.into_inner(),
        Ok(Err(status)) => return ended(conn, member, &status),
        Err(_) => return silent(conn, member),
    };
    let mut listing = *from == 0;
    if listing && tx.send(Item::Relist).await.is_err() {
        return End::Receiver;
    }
    loop {
        let event = match tokio::time::timeout(SILENCE_MAX, stream.message()).await {
            Ok(Ok(Some(event))) => event,
            Ok(Ok(None)) => return End::Broken("closed".into()),
            Ok(Err(status)) => return ended(conn, member, &status),
            Err(_) => return silent(conn, member),
        };
        let revision = event.revision;
        let bookmark = event.r#type() == EventType::Bookmark;
        if let Some(item) = item::<T>(key, event, &mut listing)
            && tx.send(item).await.is_err()
        {
            return End::Receiver;
        }
        // Within the initial list nothing may be resumed from: half of it is missing.
        if !listing && (bookmark || revision > *from) {
            *from = (*from).max(revision);
        }
    }
}

fn item<T: DeserializeOwned>(key: &ObjectKey, event: WatchEvent, listing: &mut bool) -> Option<Item<T>> {
    let kind = event.r#type();
    if kind == EventType::Bookmark {
        return std::mem::take(listing).then_some(Item::Synced);
    }
    let object = event.object.unwrap_or_default();
    let key = object.key.as_ref().unwrap_or(key);
    match decode(key, &object.json) {
        Ok(value) if kind == EventType::Deleted => Some(Item::Gone(value)),
        Ok(value) => Some(Item::Present(value)),
        Err(error) => {
            tracing::error!(%error, "an object that this agent cannot read");
            None
        }
    }
}

fn ended(conn: &Connection, member: u64, status: &tonic::Status) -> End {
    match status.code() {
        Code::OutOfRange => End::Expired,
        Code::PermissionDenied | Code::InvalidArgument | Code::Unimplemented => {
            End::Refused(status.message().to_owned())
        }
        _ => {
            conn.leave(member);
            End::Broken(status.message().to_owned())
        }
    }
}

fn silent(conn: &Connection, member: u64) -> End {
    conn.leave(member);
    End::Broken(format!("silent for {} s", SILENCE_MAX.as_secs()))
}
