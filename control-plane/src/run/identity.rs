//! Which Raft id this member has. It is kept beside the log it belongs to: whoever loses the
//! log loses the id with it, and is given another one, since Raft must never see a member
//! forget what it has promised.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use trellis_proto::api::AddMemberRequest;
use trellis_proto::client::Connection;
use trellis_proto::file;
use trellis_proto::patience::stretched;
use trellis_proto::tls::{ClientTls, TlsError};

use super::RunError;
use crate::config::Settings;

const VERSION: u32 = 1;
/// Between two rounds of asking the other members.
const ASK_PAUSE: Duration = Duration::from_millis(500);
/// How long one round may take.
const ASK_WITHIN: Duration = Duration::from_secs(5);
/// How often the log says what is waited for.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// What a member knows of itself: `member.json` in its data folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    version: u32,
    /// Its Raft id.
    pub id: u64,
    /// It made the cluster.
    #[serde(default)]
    pub bootstrap: bool,
}

/// Reads the id, or finds one: the cluster's maker has node.json's, everybody else asks the
/// other members, for as long as it takes.
pub(super) async fn resolve(settings: &Settings) -> Result<Identity, RunError> {
    let path = settings.data_dir.join("member.json");
    if let Some(known) = beside_log(file::read(&path, VERSION)?, &settings.data_dir.join("raft/log")) {
        return Ok(known);
    }
    let me = settings.me()?;
    let alone = settings.node.members.iter().all(|m| m.name == me.name);
    let identity = if settings.bootstrap.is_some() && alone {
        Identity { version: VERSION, id: me.id, bootstrap: true }
    } else {
        let id = ask(settings).await?;
        Identity { version: VERSION, id, bootstrap: false }
    };
    file::write_compact(&path, &identity)?;
    Ok(identity)
}

/// What is remembered counts for the log that it was made for: without that, this is a new member.
fn beside_log(known: Option<Identity>, log: &Path) -> Option<Identity> {
    let known = known?;
    if log.is_dir() {
        return Some(known);
    }
    tracing::warn!(id = known.id, log = %log.display(), "the Raft log is not there: this is another member from now on");
    None
}

/// A connection to the other members; `None` when there are none.
pub(super) fn others(settings: &Settings) -> Result<Option<Connection>, TlsError> {
    let name = &settings.node.node_name;
    let endpoints: Vec<_> = settings
        .node
        .members
        .iter()
        .filter(|m| m.name != *name)
        .map(|m| format!("https://{}", m.api_address))
        .collect();
    if endpoints.is_empty() {
        return Ok(None);
    }
    Ok(Some(Connection::new(endpoints, ClientTls::to_member(&settings.credentials)?)))
}

/// What this member asks the others for.
pub(super) fn request(settings: &Settings, fresh: bool) -> AddMemberRequest {
    let name = settings.node.node_name.clone();
    let (api_address, peer_address) =
        settings.me().map(|m| (m.api_address.clone(), m.peer_address.clone())).unwrap_or_default();
    AddMemberRequest { name, api_address, peer_address, fresh }
}

async fn ask(settings: &Settings) -> Result<u64, RunError> {
    let others = others(settings)?;
    let mut said: Option<Instant> = None;
    loop {
        let why = match &others {
            None => "node.json names no other member, and there is no bootstrap.json: a cluster is not made a second \
                     time"
                .to_owned(),
            Some(others) => {
                let request = request(settings, true);
                let answer = others
                    .call_within(stretched(ASK_WITHIN), |channel| {
                        let request = request.clone();
                        async move {
                            trellis_proto::api::cluster_client::ClusterClient::new(channel).add_member(request).await
                        }
                    })
                    .await;
                match answer {
                    Ok(answer) => return Ok(answer.into_inner().your_id),
                    Err(refused) => refused.message().to_owned(),
                }
            }
        };
        if said.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
            tracing::info!(why, "asking the other members to be added");
            said = Some(Instant::now());
        }
        tokio::time::sleep(ASK_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn an_id_counts_beside_its_log_alone() {
        let dir = tempfile::tempdir().unwrap();
        let known = Identity { version: VERSION, id: 1, bootstrap: true };
        assert_eq!(beside_log(Some(known), dir.path()), Some(known));
        assert_eq!(beside_log(Some(known), &dir.path().join("log")), None);
        assert_eq!(beside_log(None, dir.path()), None);
    }
}
