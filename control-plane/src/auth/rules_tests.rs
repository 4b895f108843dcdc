#![allow(clippy::unwrap_used, missing_docs)]
use super::*;

/// The whole matrix of a role, a line a kind, a letter a verb: `a` any, `b` bound, `t`
/// terminating, `n` named, `r` referenced, `p` projection, `.` forbidden. Verbs in the order of
/// [`Verb::ALL`]: get list watch create update status delete.
fn matrix(caller: &Caller) -> Vec<(Kind, String)> {
    let letter = |rule| match rule {
        None => '.',
        Some(Rule::Any) => 'a',
        Some(Rule::BoundTo(n)) if n == "n1" => 'b',
        Some(Rule::TerminatingOn(n)) if n == "n1" => 't',
        Some(Rule::Named(n)) if n == "n1" => 'n',
        Some(Rule::ReferencedOn(n)) if n == "n1" => 'r',
        Some(Rule::NetworkProjection) => 'p',
        Some(other) => panic!("{other:?} names another node"),
    };
    let line = |kind| Verb::ALL.iter().map(|v| letter(resources(caller, *v, kind))).collect();
    Kind::ALL.into_iter().map(|kind| (kind, line(kind))).collect()
}

#[test]
fn administrators_members_and_this_process_may_do_everything() {
    for caller in [
        Caller::Peer(Identity::Admin("admin".into())),
        Caller::Peer(Identity::Member("n1".into())),
        Caller::System("controllers"),
    ] {
        for (kind, line) in matrix(&caller) {
            assert_eq!(line, "aaaaaaa", "{caller} {kind}");
        }
        assert!(caller.is_trusted());
    }
}

#[test]
fn an_agent_may_do_what_its_node_needs() {
    let caller = Caller::Peer(Identity::Agent("n1".into()));
    assert!(!caller.is_trusted());
    for (kind, line) in matrix(&caller) {
        let expected = match kind {
            Kind::Pod => "bbb..bt",
            Kind::Node => "nnnnnn.",
            Kind::ConfigMap | Kind::Secret => "r.r....",
            Kind::Event => "...a...",
            Kind::Namespace | Kind::NetworkPolicy | Kind::ReplicaSet | Kind::Deployment => ".......",
        };
        assert_eq!(line, expected, "{kind}");
    }
}

#[test]
fn a_netd_may_read_what_makes_the_network() {
    let caller = Caller::Peer(Identity::Netd("n1".into()));
    assert!(!caller.is_trusted());
    for (kind, line) in matrix(&caller) {
        let expected = match kind {
            Kind::Node | Kind::Namespace | Kind::NetworkPolicy => "aaa....",
            Kind::Pod => "ppp....",
            _ => ".......",
        };
        assert_eq!(line, expected, "{kind}");
    }
}

#[test]
fn a_daemon_speaks_for_its_own_node_and_role_alone() {
    let callers = [
        (Caller::Peer(Identity::Agent("n1".into())), Some(NodeRole::Agent)),
        (Caller::Peer(Identity::Netd("n1".into())), Some(NodeRole::Netd)),
        (Caller::Peer(Identity::Admin("n1".into())), None),
        (Caller::Peer(Identity::Member("n1".into())), None),
    ];
    for (caller, own) in callers {
        for role in [NodeRole::Agent, NodeRole::Netd] {
            assert_eq!(speaks_for(&caller, role, "n1"), own == Some(role), "{caller} {role:?}");
            assert!(!speaks_for(&caller, role, "n2"), "{caller} {role:?}");
        }
    }
}
