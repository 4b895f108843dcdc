//! What a member sees to beside serving: its certificate, node.json, and being a member.

use std::time::Duration;

use tonic::Code;
use trellis_proto::identity::Identity;
use trellis_proto::node_config::{MemberAddress, NodeConfig};
use trellis_proto::patience::stretched;
use trellis_proto::renewal::{self, Files};

use super::identity::{others, request};
use crate::api::cluster::{ClusterConfig, authority};
use crate::api::ops::Ops;
use crate::config::Settings;
use crate::raft::Consensus;

/// How often node.json is compared with the membership.
const LOOK_AT_MEMBERS: Duration = Duration::from_secs(2);
/// A member that is not in the membership asks again after this long.
const ASK_AGAIN: Duration = Duration::from_secs(15);
/// How long asking may take.
const ASK_WITHIN: Duration = Duration::from_secs(5);

/// Signs this member's certificate anew when it is due. Members hold the CA's key, so nobody is
/// asked.
pub(super) async fn renew_certificate(settings: &Settings, ops: &Ops) {
    let identity = Identity::Member(settings.node.node_name.clone());
    let files = Files::new(&settings.config_dir.join("pki"), "member");
    let sign = |csr: String| {
        let signed = authority(ops, &settings.credentials).map_err(|e| e.to_string()).and_then(|ca| {
            let lifetime = ClusterConfig::certificate_lifetime(ops.store());
            ca.sign(&csr, &identity, lifetime).map_err(|e| e.to_string())
        });
        std::future::ready(signed)
    };
    renewal::keep_valid(identity.clone(), settings.credentials.clone(), files, sign).await;
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
            match NodeConfig::store_members(&settings.config_dir, &members) {
                Ok(()) => {
                    tracing::info!("wrote the new membership into node.json");
                    (node.members, complained) = (members, false);
                }
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

/// Asks the others again while this member is not among the voters, or has lost the others: whoever
/// was to add it may have died, or it was removed and nobody could tell it. A member that was
/// removed for good says so once, and what to do, and goes on refusing its clients.
pub(super) async fn stay_a_member(settings: &Settings, consensus: &Consensus) {
    let connection = match others(settings) {
        Ok(Some(connection)) => connection,
        Ok(None) => return,
        Err(error) => {
            tracing::error!(%error, "the other members cannot be asked");
            return;
        }
    };
    let mut said = false;
    loop {
        tokio::time::sleep(ASK_AGAIN).await;
        let id = consensus.id();
        let votes = consensus.members().iter().any(|m| m.member.id == id && m.voter);
        if votes && consensus.cut_off().is_none() {
            said = false;
            continue;
        }
        let request = request(settings, false);
        let answer = connection
            .call_within(stretched(ASK_WITHIN), |channel| {
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
            Err(refused) if refused.code() == Code::FailedPrecondition => {
                if !std::mem::replace(&mut said, true) {
                    tracing::error!(why = refused.message(), "{}", removed_text(settings));
                }
            }
            Err(refused) => tracing::info!(why = refused.message(), "not a member"),
        }
    }
}

/// What a person does about a member that was removed.
fn removed_text(settings: &Settings) -> String {
    format!(
        "this machine was removed from the control plane of cluster {:?}: it serves no reads or writes any more. Stop \
         trellis-control-plane here. To bring the machine back as a member, empty {} and {}, and run `trellis cluster \
         join --control-plane` with a new token",
        settings.node.cluster_name,
        settings.data_dir.display(),
        settings.config_dir.display()
    )
}
