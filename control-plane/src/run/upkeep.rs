//! What a member sees to beside serving: its certificate, node.json, and being a member.

use std::time::{Duration, SystemTime};

use trellis_proto::node_config::{MemberAddress, write_private};
use trellis_proto::pki::{self, Profile};

use super::identity::{others, request};
use crate::api::cluster::authority;
use crate::api::ops::Ops;
use crate::config::Settings;
use crate::raft::Consensus;

/// How often the certificate's age is looked at.
const LOOK_AT_CERTIFICATE: Duration = Duration::from_secs(3_600);
/// How often node.json is compared with the membership.
const LOOK_AT_MEMBERS: Duration = Duration::from_secs(2);
/// A member that is not in the membership asks again after this long.
const ASK_AGAIN: Duration = Duration::from_secs(15);
/// How long asking may take.
const ASK_WITHIN: Duration = Duration::from_secs(5);

/// Signs this member's certificate anew at two thirds of its life. Members hold the CA's key,
/// so nobody is asked; the private key stays.
pub(super) async fn renew_certificate(settings: &Settings, ops: &Ops) {
    loop {
        if let Err(error) = renew_if_due(settings, ops) {
            tracing::warn!(error, "this member's certificate was not renewed");
        }
        tokio::time::sleep(LOOK_AT_CERTIFICATE).await;
    }
}

fn renew_if_due(settings: &Settings, ops: &Ops) -> Result<(), String> {
    let pki_dir = settings.config_dir.join("pki");
    let (crt, key) = (pki_dir.join("member.crt"), pki_dir.join("member.key"));
    let read = |path: &std::path::Path| std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()));
    let now_used = read(&crt)?;
    let due = pki::renew_at(&now_used).map_err(|e| e.to_string())?;
    if SystemTime::now() < due {
        return Ok(());
    }
    let profile = Profile::Member(settings.node.node_name.clone());
    let key = zeroize::Zeroizing::new(read(&key)?);
    let csr = pki::request_with(&profile, &key).map_err(|e| e.to_string())?;
    let ca = authority(ops, &settings.credentials).map_err(|e| e.to_string())?;
    let signed = ca.sign(&csr, &profile).map_err(|e| e.to_string())?;
    write_private(&crt, signed.as_bytes()).map_err(|e| format!("{}: {e}", crt.display()))?;
    settings.credentials.reload().map_err(|e| e.to_string())?;
    tracing::info!("renewed this member's certificate");
    Ok(())
}

/// Writes the membership into node.json, where the machine's other daemons find it when they
/// start. The folder may be read-only to us: then it stays as it was.
pub(super) async fn keep_node_json(settings: &Settings, consensus: &Consensus) {
    let mut node = settings.node.clone();
    let mut complained = false;
    loop {
        let mut members: Vec<_> = consensus
            .members()
            .into_iter()
            .map(|m| MemberAddress {
                id: m.member.id,
                name: m.member.name,
                api_address: m.member.api_address,
                peer_address: m.member.peer_address,
            })
            .collect();
        members.sort_by_key(|m| m.id);
        // A member that was removed, or not yet added, keeps what it knows.
        let mine = members.iter().any(|m| m.name == node.node_name);
        if mine && members != node.members {
            node.members = members;
            match node.store(&settings.config_dir) {
                Ok(()) => tracing::info!("wrote the new membership into node.json"),
                Err(error) if !complained => {
                    complained = true;
                    tracing::warn!(%error, "node.json does not follow the membership");
                }
                Err(_) => {}
            }
        }
        tokio::time::sleep(LOOK_AT_MEMBERS).await;
    }
}

/// Asks the others again while this member is not among the voters: whoever was to add it may
/// have died. A member that was removed for good is refused, and stays quiet.
pub(super) async fn stay_a_member(settings: &Settings, consensus: &Consensus) {
    let connection = match others(settings) {
        Ok(Some(connection)) => connection,
        Ok(None) => return,
        Err(error) => {
            tracing::error!(%error, "the other members cannot be asked");
            return;
        }
    };
    loop {
        tokio::time::sleep(ASK_AGAIN).await;
        let id = consensus.id();
        if consensus.members().iter().any(|m| m.member.id == id && m.voter) {
            continue;
        }
        let request = request(settings, false);
        let answer = connection
            .call_within(ASK_WITHIN, |channel| {
                let request = request.clone();
                async move { trellis_proto::api::cluster_client::ClusterClient::new(channel).add_member(request).await }
            })
            .await;
        match answer {
            Ok(answer) if answer.get_ref().your_id != id => {
                let now = answer.get_ref().your_id;
                tracing::error!(id, now, "another machine is this member now: stop this one");
            }
            Ok(_) => tracing::info!("asked again to be added"),
            Err(refused) => tracing::info!(why = refused.message(), "not a member"),
        }
    }
}
