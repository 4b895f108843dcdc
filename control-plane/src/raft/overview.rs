//! Who the members are and how they stand. Only the leader hears of each of them, so any other
//! member asks it; and since a leader that is cut off does not notice it for a while, the leader
//! first has a majority confirm that it still is one.

use std::time::Duration;

use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use tonic::Status;
use trellis_proto::patience::stretched;
use trellis_proto::peer::MembersRequest;
use trellis_proto::peer::leader_client::LeaderClient;

use super::consensus::Inner;
use super::leader::cut_off_text;
use super::reads::leader_channel;
use super::types::{Leadership, Member, MemberStatus, Overview};
use super::wire;

/// A person waits for it: an election is over by then, or no quorum is there.
const ASK_WITHIN: Duration = Duration::from_millis(1_500);
/// Between two looks for a leader.
const PAUSE: Duration = Duration::from_millis(50);

impl Inner {
    /// The members as this one knows them.
    pub(super) fn members(&self) -> Vec<MemberStatus> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let voters: Vec<u64> = metrics.membership_config.voter_ids().collect();
        let status = |(id, member): (&u64, &Member)| {
            let own = *id == self.id;
            let matched = metrics.replication.as_ref().and_then(|r| r.get(id).copied()).flatten();
            let heard = metrics.heartbeat.as_ref().and_then(|h| h.get(id).cloned()).flatten();
            MemberStatus {
                member: member.clone(),
                voter: voters.contains(id),
                leader: metrics.current_leader == Some(*id),
                matched_index: if own { metrics.last_log_index } else { matched.map(|m| m.index) },
                silent_millis: if own { Some(0) } else { heard.map(|h| h.elapsed().as_millis() as u64) },
            }
        };
        metrics.membership_config.nodes().map(status).collect()
    }
}

/// Asks the leader; tells this member's own view, without a leader in it, when none answers.
pub(super) async fn overview(inner: &Inner) -> Overview {
    let mut why = "no leader is known".to_owned();
    let asked = tokio::time::timeout(stretched(ASK_WITHIN), ask(inner, &mut why)).await;
    let note = match asked {
        Ok(Ok((leader_id, mut members))) => {
            members.sort_by_key(|m| m.member.id);
            return Overview { members, leader_id: Some(leader_id), note: None };
        }
        Ok(Err(silent)) => cut_off_text(inner.id, silent),
        Err(_) => {
            format!("no leader answered member {} within {} ms: {why}", inner.id, stretched(ASK_WITHIN).as_millis())
        }
    };
    let mut members = inner.members();
    members.sort_by_key(|m| m.member.id);
    for member in &mut members {
        let own = member.member.id == inner.id;
        member.leader = false;
        member.matched_index = member.matched_index.filter(|_| own);
        member.silent_millis = member.silent_millis.filter(|_| own);
    }
    Overview { members, leader_id: None, note: Some(note) }
}

/// Tries until a leader answers, or this member turns out to be cut off.
async fn ask(inner: &Inner, why: &mut String) -> Result<(u64, Vec<MemberStatus>), Duration> {
    loop {
        if let Some(silent) = inner.cut_off() {
            return Err(silent);
        }
        let now = inner.leadership.borrow().clone();
        if let Some(leader_id) = now.leader_id {
            match ask_once(inner, &now).await {
                Ok(members) => return Ok((leader_id, members)),
                Err(status) => status.message().clone_into(why),
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn ask_once(inner: &Inner, leadership: &Leadership) -> Result<Vec<MemberStatus>, Status> {
    if leadership.leader_id == Some(inner.id) {
        inner.read_index_as_leader().await?;
        return Ok(inner.members());
    }
    let reply = LeaderClient::new(leader_channel(inner, leadership)?).members(MembersRequest {}).await?;
    wire::decode(&reply.into_inner().payload)
}
