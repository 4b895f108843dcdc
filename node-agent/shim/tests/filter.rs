//! A filter that was kept confines exactly as the one that libcontainer compiles.
#![allow(clippy::unwrap_used, missing_docs)]
mod common;

use common::{Pod, pod, pod_with, until};
use serde_json::{Value, json};

/// What the kernel says of a process' rights, and what it lets it do.
const LOOK: &str = "grep -E 'Cap|Seccomp|NoNewPrivs|Uid|Gid|Groups' /proc/self/status; \
    unshare -n true 2>/dev/null && echo unshared; mount -t tmpfs x /tmp 2>/dev/null && echo mounted; \
    (sleep 0; echo forked) & wait; id; echo end";

fn seen(pod: &Pod, id: &str, change: &dyn Fn(&mut Value)) -> Vec<String> {
    let mut request = pod.request(id, LOOK);
    change(&mut request.spec);
    pod.run_request(request);
    until("it has looked", || pod.lines(id, "stdout").last().is_some_and(|l| l == "end"));
    pod.lines(id, "stdout")
}

/// A name, and a change of the spec.
type Kind = (&'static str, fn(&mut Value));

const KINDS: [Kind; 5] = [
    ("usual", |_| ()),
    ("nnp", |spec| spec["process"]["noNewPrivileges"] = json!(true)),
    ("user", |spec| spec["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [7]})),
    ("nothing", |spec| spec["process"]["capabilities"] = json!({"bounding": [], "effective": [], "permitted": []})),
    ("ambient", |spec| {
        let caps = json!(["CAP_NET_BIND_SERVICE", "CAP_SYS_ADMIN"]);
        spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        spec["process"]["capabilities"] =
            json!({"bounding": caps, "effective": caps, "permitted": caps, "inheritable": caps, "ambient": caps});
    }),
];

#[test]
fn a_kept_filter_confines_as_a_new_one() {
    let Some(kept) = pod("a_kept_filter_confines_as_a_new_one") else { return };
    let Some(own) = pod_with("a_kept_filter_confines_as_a_new_one", |c| c.filters = None) else { return };
    for (name, change) in KINDS {
        let wanted = seen(&own, name, &change);
        assert!(wanted.iter().any(|l| l == "Seccomp:\t2") && wanted.contains(&"forked".to_owned()), "{wanted:?}");
        // The first compiles it (or finds another's), the second finds it.
        for round in ["first", "second"] {
            assert_eq!(seen(&kept, &format!("{name}-{round}"), &change), wanted, "{name}, {round}");
        }
    }
    let files = std::fs::read_dir(kept.config.filters.as_ref().unwrap()).unwrap().count();
    assert_eq!(files, 1, "all of them have the same rules");
}
