//! Changing who is a member.
//!
//! A member that starts without a log asks to be added (`fresh`): it is given an id at once and
//! is added in the background, since it can only be reached once it knows its id. An id is
//! never used by two logs: a member that lost its log gets another one, and its old id is
//! removed.

use std::time::{Duration, Instant};

use trellis_proto::api;

use super::ClusterService;
use super::config::{MemberRecord, to_json};
use super::join::next_member_id;
use crate::api::names;
use crate::api::ops::{ApiError, now_millis};
use crate::raft::{Consensus, Member, MemberError, MemberStatus};
use crate::store::{Command, Op, Outcome, SysValue, SysWhen};

/// How long a member that asked may take to listen.
const ADD_WITHIN: Duration = Duration::from_secs(60);
/// Between two tries to add it.
const ADD_PAUSE: Duration = Duration::from_millis(500);
/// Tries when another change was faster.
const ATTEMPTS: usize = 8;
/// A member that the leader has not heard from for this long counts as not reachable.
const REACHABLE_MILLIS: u64 = 2_000;

impl ClusterService {
    /// What the store knows of a member by name.
    pub(super) fn member_record(&self, name: &str) -> Option<(MemberRecord, SysValue)> {
        let found = self.ops.store().sys_get(&names::member(name))?;
        let record = serde_json::from_slice(&found.value).ok()?;
        Some((record, found))
    }

    /// The membership as this member sees it.
    pub(super) fn members(&self) -> Vec<api::Member> {
        let mut all: Vec<_> = self.consensus.members().into_iter().map(told).collect();
        all.sort_by_key(|m| m.id);
        all
    }

    /// The id of a voter that somebody wants to add a second time, as it is.
    ///
    /// # Errors
    /// [`ApiError::Precondition`] when it is to get other addresses.
    pub(super) fn is_member_already(&self, r: &api::AddMemberRequest) -> Result<Option<u64>, ApiError> {
        let all = self.consensus.members();
        let Some(found) = all.iter().find(|m| m.voter && m.member.name == r.name) else { return Ok(None) };
        let Member { id, name, api_address, peer_address } = &found.member;
        let same = |new: &str, old: &str| new.is_empty() || new == old;
        if same(&r.api_address, api_address) && same(&r.peer_address, peer_address) {
            return Ok(Some(*id));
        }
        Err(ApiError::Precondition(format!(
            "{name:?} is a member already, with API address {api_address} and peer address {peer_address}: to give \
             it others, remove it first (`trellis cluster remove {name}`), then let its machine join anew"
        )))
    }

    /// Id and addresses to add a joined member with; a fresh log gets an unused id.
    pub(super) async fn reserve(&self, r: &api::AddMemberRequest) -> Result<(Member, Option<u64>), ApiError> {
        self.ops.backend().read_barrier().await?;
        for _ in 0..ATTEMPTS {
            let (record, at) = self.member_record(&r.name).ok_or_else(|| {
                ApiError::Precondition(format!(
                    "no machine has joined as control-plane member {:?}: join it with a token \
                     made by `trellis cluster token create --control-plane`",
                    r.name
                ))
            })?;
            let address = |new: &str, old: &str| if new.is_empty() { old } else { new }.to_owned();
            let mut next = MemberRecord {
                id: record.id,
                api_address: address(&r.api_address, &record.api_address),
                peer_address: address(&r.peer_address, &record.peer_address),
                used: record.used || r.fresh,
            };
            let mut all = Vec::new();
            let mut gone = None;
            if r.fresh && record.used {
                let (id, op) = next_member_id(self.ops.store())?;
                gone = Some(record.id);
                next.id = id;
                all.push(op);
            }
            let member = Member {
                id: next.id,
                name: r.name.clone(),
                api_address: next.api_address.clone(),
                peer_address: next.peer_address.clone(),
            };
            if next == record {
                return Ok((member, gone));
            }
            all.push(Op::SysPut {
                key: names::member(&r.name),
                when: SysWhen::Revision(at.revision),
                value: to_json(&next)?,
            });
            match self.ops.backend().propose(Command::new(now_millis(), all)).await? {
                Outcome::Done { .. } => return Ok((member, gone)),
                Outcome::Failed { .. } => {}
                other => return Err(ApiError::Internal(format!("adding a member: {other:?}"))),
            }
        }
        Err(ApiError::Unavailable { why: "the membership keeps changing".into(), leader: None })
    }

    /// The member that a person means by name or id.
    pub(super) fn find_member(&self, text: &str) -> Result<MemberStatus, ApiError> {
        let all = self.consensus.members();
        let found = all.iter().find(|m| m.member.name == text || m.member.id.to_string() == text);
        found.cloned().ok_or_else(|| {
            let names: Vec<_> = all.iter().map(|m| m.member.name.as_str()).collect();
            ApiError::Precondition(format!("there is no member {text:?}: members are {}", names.join(", ")))
        })
    }

    /// Removes a member, and what lets it come back under its name.
    ///
    /// Its record goes first: a member that was removed asks to be added again, and whoever
    /// removes the very member that serves the call could not write afterwards.
    pub(super) async fn forget(&self, text: &str) -> Result<(), ApiError> {
        self.ops.backend().read_barrier().await?;
        let (name, id) = match self.find_member(text) {
            Ok(found) => (found.member.name, Some(found.member.id)),
            // Joined, but never added, or removed but for its name.
            Err(_) if self.member_record(text).is_some() => (text.to_owned(), None),
            Err(unknown) => return Err(unknown),
        };
        let record = self.member_record(&name);
        let mut all = Vec::new();
        if record.is_some() {
            all.push(Op::SysDelete { key: names::member(&name), when: SysWhen::Always });
        }
        let node = crate::api::ops::encode::key_of(trellis_model::Kind::Node, "", &name);
        let registered = names::registration(&name);
        let store = self.ops.store();
        let registration = store.sys_get(&registered).filter(|_| store.get(&node).is_none());
        if registration.is_some() {
            all.push(Op::SysDelete { key: registered.clone(), when: SysWhen::Always });
        }
        if !all.is_empty() {
            self.ops.backend().propose(Command::new(now_millis(), all)).await?;
        }
        let Some(id) = id else { return Ok(()) };
        let Err(error) = removed(self.consensus.remove_member(id).await) else { return Ok(()) };
        if !matches!(error, MemberError::Leader(_)) {
            // It certainly stays a member: so does its name.
            let put = |key: String, value: bytes::Bytes| Op::SysPut { key, when: SysWhen::Absent, value };
            let member = record.map(|(_, was)| put(names::member(&name), was.value));
            let all: Vec<_> = member.into_iter().chain(registration.map(|was| put(registered, was.value))).collect();
            if !all.is_empty() {
                self.ops.backend().propose(Command::new(now_millis(), all)).await?;
            }
        }
        Err(error.into())
    }

    /// The follower that is furthest, for a transfer that names none.
    pub(super) async fn best_follower(&self) -> Result<u64, ApiError> {
        let told = self.consensus.overview().await;
        if let Some(why) = told.note {
            return Err(ApiError::Unavailable { why, leader: None });
        }
        let followers = told.members.iter().filter(|m| m.voter && !m.leader);
        let reachable = followers.filter(|m| m.silent_millis.is_some_and(|s| s < REACHABLE_MILLIS));
        reachable
            .max_by_key(|m| m.matched_index)
            .map(|m| m.member.id)
            .ok_or_else(|| ApiError::Precondition("there is no other voter that could lead".into()))
    }
}

/// A member that was there when its removal began and is not any more was removed: the leader that
/// did it died before it could say so, and the next one was asked again.
fn removed(result: Result<(), MemberError>) -> Result<(), MemberError> {
    match result {
        Err(MemberError::Unknown { .. }) => Ok(()),
        other => other,
    }
}

/// Adds a member that is about to listen, again and again for a while.
pub(super) async fn add_soon(consensus: Consensus, member: Member, gone: Option<u64>) {
    let until = Instant::now() + ADD_WITHIN;
    let mut gone = gone;
    loop {
        if let Some(id) = gone {
            let there = consensus.members().iter().any(|m| m.member.id == id);
            match if there { consensus.remove_member(id).await } else { Ok(()) } {
                Ok(()) => gone = None,
                Err(error) => tracing::warn!(id, %error, "removing a member that lost its log"),
            }
        }
        if gone.is_none() {
            match consensus.add_member(member.clone()).await {
                Ok(()) => {
                    tracing::info!(%member, "added a member");
                    return;
                }
                Err(error) => tracing::info!(%member, %error, "adding a member"),
            }
        }
        if Instant::now() >= until {
            tracing::warn!(%member, "was not added: it will ask again when it starts");
            return;
        }
        tokio::time::sleep(ADD_PAUSE).await;
    }
}

/// As it is told to clients.
pub(super) fn told(m: MemberStatus) -> api::Member {
    let role = match (m.leader, m.voter) {
        (true, _) => "leader",
        (false, true) => "follower",
        (false, false) => "learner",
    };
    api::Member {
        id: m.member.id,
        name: m.member.name,
        api_address: m.member.api_address,
        peer_address: m.member.peer_address,
        role: role.into(),
        reachable: m.silent_millis.map(|silent| silent < REACHABLE_MILLIS),
        matched_log_index: m.matched_index,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn a_removal_that_is_repeated_after_it_was_done_succeeds() {
        removed(Ok(())).unwrap();
        removed(Err(MemberError::Unknown { id: 3, members: "1 (n1), 2 (n2)".into() })).unwrap();
        let kept = removed(Err(MemberError::LastVoter { id: 3 }));
        assert!(matches!(kept, Err(MemberError::LastVoter { id: 3 })), "{kept:?}");
    }
}
