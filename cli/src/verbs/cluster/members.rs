//! `cluster members`, `add`, `remove`, `transfer-leader`, `status` and `token`.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use trellis_proto::api::{
    AddMemberRequest, CreateTokenRequest, Member, RemoveMemberRequest, StatusReply, StatusRequest,
    TransferLeaderRequest, cluster_client::ClusterClient,
};

use crate::cli::Global;
use crate::duration;
use crate::error::CliError;
use crate::output::{self, Format, table};
use crate::session::Session;
use crate::yaml;

/// A new member first catches up as a learner, for a minute at most; and the call may have waited
/// for another change and an election before.
const CHANGE_LIMIT: Duration = Duration::from_secs(90);

/// How to print.
#[derive(clap::Args, Debug)]
pub struct List {
    /// How to print
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

/// A member to add.
#[derive(clap::Args, Debug)]
pub struct Add {
    /// Its node's name
    name: String,
    /// HOST:PORT of its API [default: as it joined]
    #[arg(long, default_value = "", hide_default_value = true)]
    api_address: String,
    /// HOST:PORT for its peers [default: as it joined]
    #[arg(long, default_value = "", hide_default_value = true)]
    peer_address: String,
}

/// What to do with tokens.
#[derive(clap::Subcommand, Debug)]
pub enum Token {
    /// Make a single-use token with which a machine joins
    Create {
        /// How long it may be used
        #[arg(long, value_parser = duration::seconds, default_value = "1h")]
        ttl: u64,
        /// The machine may become a member of the control plane
        #[arg(long)]
        control_plane: bool,
    },
}

/// The leader's view. A member that finds none may be the one that is cut off: the others are asked as well, each
/// once, before its own view is taken.
async fn ask(session: &Session) -> Result<StatusReply, CliError> {
    let status = || session.conn.call(|c| async move { ClusterClient::new(c).status(StatusRequest {}).await });
    let first = status().await?.into_inner();
    for _ in 1..session.conn.endpoints().len() {
        if first.note.is_empty() {
            break;
        }
        session.conn.next_endpoint();
        match status().await {
            Ok(reply) if reply.get_ref().note.is_empty() => return Ok(reply.into_inner()),
            Ok(_) => {}
            // The first has answered, after all.
            Err(_) => break,
        }
    }
    Ok(first)
}

fn value(m: &Member) -> Value {
    json!({"id": m.id, "name": m.name, "role": m.role, "apiAddress": m.api_address,
        "peerAddress": m.peer_address, "reachable": m.reachable, "matchedLogIndex": m.matched_log_index})
}

fn members_table(members: &[Member]) -> String {
    let rows: Vec<Vec<String>> = members
        .iter()
        .map(|m| {
            let reachable = m.reachable.map_or("-", |r| if r { "yes" } else { "no" });
            vec![
                m.id.to_string(),
                m.name.clone(),
                m.role.clone(),
                reachable.to_owned(),
                m.matched_log_index.map_or_else(|| "-".to_owned(), |index| index.to_string()),
                m.api_address.clone(),
                m.peer_address.clone(),
            ]
        })
        .collect();
    table::render(["ID", "NAME", "ROLE", "REACHABLE", "LOG", "API", "PEER"], &rows)
}

/// Why figures are missing, for a person.
fn tell(note: &str) {
    if !note.is_empty() {
        eprintln!("Warning: no leader was found, so this is one member's own view: {note}");
    }
}

/// `cluster members`
pub async fn list(global: &Global, args: &List) -> Result<(), CliError> {
    let reply = ask(&Session::open(global)?).await?;
    tell(&reply.note);
    let all = || json!({"members": reply.members.iter().map(value).collect::<Vec<_>>(), "leaderId": reply.leader_id});
    output::print(&match args.output {
        Some(Format::Json) => output::json_text(&all()),
        Some(Format::Yaml) => yaml::write(&all()),
        Some(Format::Name) => reply.members.iter().map(|m| format!("{}\n", m.name)).collect(),
        _ => members_table(&reply.members),
    })
}

/// `cluster status`
pub async fn status(global: &Global, args: &List) -> Result<(), CliError> {
    let r = ask(&Session::open(global)?).await?;
    tell(&r.note);
    let all = || {
        json!({"clusterName": r.cluster_name, "version": r.version, "term": r.term, "leaderId": r.leader_id,
            "revision": r.revision, "lastLogIndex": r.last_log_index, "appliedLogIndex": r.applied_log_index,
            "members": r.members.iter().map(value).collect::<Vec<_>>()})
    };
    let leader = r.members.iter().find(|m| m.id == r.leader_id).map_or("none", |m| m.name.as_str());
    output::print(&match args.output {
        Some(Format::Json) => output::json_text(&all()),
        Some(Format::Yaml) => yaml::write(&all()),
        _ => format!(
            "Cluster:   {}\nVersion:   {}\nLeader:    {leader} (term {})\nRevision:  {}\nLog:       {} applied of {}\n\n{}",
            r.cluster_name,
            r.version,
            r.term,
            r.revision,
            r.applied_log_index,
            r.last_log_index,
            members_table(&r.members)
        ),
    })
}

/// `cluster add`
pub async fn add(global: &Global, args: Add) -> Result<(), CliError> {
    let session = Session::open(global)?;
    let request = AddMemberRequest {
        name: args.name.clone(),
        api_address: args.api_address,
        peer_address: args.peer_address,
        fresh: false,
    };
    let reply = session
        .conn
        .call_within(CHANGE_LIMIT, |c| {
            let request = request.clone();
            async move { ClusterClient::new(c).add_member(request).await }
        })
        .await?
        .into_inner();
    if reply.unchanged {
        eprintln!("{:?} is a member already: nothing was changed", args.name);
    } else {
        eprintln!("member {:?} added", args.name);
    }
    tell(&reply.note);
    output::print(&members_table(&reply.members))
}

/// `cluster remove`
pub async fn remove(global: &Global, member: String) -> Result<(), CliError> {
    let session = Session::open(global)?;
    let request = RemoveMemberRequest { member: member.clone() };
    let reply = session
        .conn
        .call_within(CHANGE_LIMIT, |c| {
            let request = request.clone();
            async move { ClusterClient::new(c).remove_member(request).await }
        })
        .await?
        .into_inner();
    eprintln!(
        "member {member:?} removed; stop trellis-control-plane there. Its machine may join anew once its folders are \
         empty and `trellis delete node {member}` was run"
    );
    tell(&reply.note);
    output::print(&members_table(&reply.members))
}

/// `cluster transfer-leader`
pub async fn transfer(global: &Global, member: String) -> Result<(), CliError> {
    let session = Session::open(global)?;
    let request = TransferLeaderRequest { member };
    let reply = session
        .conn
        .call(|c| {
            let request = request.clone();
            async move { ClusterClient::new(c).transfer_leader(request).await }
        })
        .await?
        .into_inner();
    let leader = reply.members.iter().find(|m| m.id == reply.leader_id);
    output::print(&format!("leader is {}\n", leader.map_or("not known yet", |m| m.name.as_str())))
}

/// `cluster token`
pub async fn token(global: &Global, action: Token) -> Result<(), CliError> {
    let Token::Create { ttl, control_plane } = action;
    let session = Session::open(global)?;
    let request = CreateTokenRequest { ttl_seconds: ttl, control_plane };
    let reply =
        session.conn.call(|c| async move { ClusterClient::new(c).create_token(request).await }).await?.into_inner();
    output::print(&format!("{}\n", reply.token))?;
    let until = i64::try_from(reply.expires_unix_seconds).ok().and_then(|s| Timestamp::from_second(s).ok());
    let until = until.map_or_else(String::new, |t| format!(" until {t}"));
    let server = session.conn.endpoints().into_iter().find_map(|e| e.strip_prefix("https://").map(str::to_owned));
    let more = if control_plane { " --control-plane" } else { "" };
    eprintln!(
        "Good for one machine{until}. On it:\n  trellis cluster join --token TOKEN --server {}{more}",
        server.unwrap_or_else(|| "ADDRESS".to_owned())
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact() {
        let m = |id, name: &str, role: &str, reachable| Member {
            id,
            name: name.into(),
            role: role.into(),
            reachable,
            matched_log_index: reachable.map(|_| 7),
            api_address: "a:1".into(),
            peer_address: "a:2".into(),
        };
        let all = [m(1, "n1", "leader", Some(true)), m(2, "n2", "follower", Some(false)), m(3, "n3", "follower", None)];
        assert_eq!(
            members_table(&all),
            "ID   NAME   ROLE       REACHABLE   LOG   API   PEER\n\
             1    n1     leader     yes         7     a:1   a:2\n\
             2    n2     follower   no          7     a:1   a:2\n\
             3    n3     follower   -           -     a:1   a:2\n"
        );
    }
}
