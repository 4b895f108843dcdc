//! The READY, STATUS and RESTARTS columns of Pods, as kubectl's printer computes them
//! (kubernetes `pkg/printers/internalversion/printers.go`, `printPod`).

use jiff::Timestamp;
use serde_json::Value;

use super::age;

/// The three columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodColumns {
    /// `1/2`
    pub ready: String,
    /// `Running`, `CrashLoopBackOff`, `Init:0/1` …
    pub status: String,
    /// `3 (10s ago)`
    pub restarts: String,
}

#[derive(Default)]
struct Tally {
    restarts: i64,
    last_restart: Option<Timestamp>,
    ready: usize,
}

impl Tally {
    fn count(&mut self, status: &Value) {
        self.restarts += status["restartCount"].as_i64().unwrap_or(0);
        let last = age::time(&status["lastState"]["terminated"]["finishedAt"]);
        self.last_restart = self.last_restart.max(last);
    }
}

fn text(v: &Value) -> &str {
    v.as_str().unwrap_or_default()
}

fn list(v: &Value) -> &[Value] {
    v.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// `Signal:9`, `ExitCode:1`, or the reason.
fn ended(terminated: &Value) -> String {
    match (text(&terminated["reason"]), terminated["signal"].as_i64().unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn condition<'p>(pod: &'p Value, type_: &str) -> Option<&'p Value> {
    list(&pod["status"]["conditions"]).iter().find(|c| c["type"] == type_)
}

fn is_sidecar(pod: &Value, name: &Value) -> bool {
    list(&pod["spec"]["initContainers"]).iter().any(|c| c["name"] == *name && c["restartPolicy"] == "Always")
}

/// What the init containers make of the status: None once they are through.
fn initializing(pod: &Value, all: &mut Tally, sidecars: &mut Tally) -> Option<String> {
    let total = list(&pod["spec"]["initContainers"]).len();
    for (i, c) in list(&pod["status"]["initContainerStatuses"]).iter().enumerate() {
        let sidecar = is_sidecar(pod, &c["name"]);
        all.count(c);
        if sidecar {
            sidecars.count(c);
        }
        let terminated = &c["state"]["terminated"];
        let waiting = text(&c["state"]["waiting"]["reason"]);
        if terminated.is_object() && terminated["exitCode"].as_i64() == Some(0) {
            continue;
        }
        if sidecar && c["started"] == true {
            if c["ready"] == true {
                all.ready += 1;
            }
            continue;
        }
        return Some(if terminated.is_object() {
            format!("Init:{}", ended(terminated))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{i}/{total}")
        });
    }
    None
}

/// The columns of a Pod.
pub fn columns(pod: &Value, now: Timestamp) -> PodColumns {
    let status = &pod["status"];
    let mut reason = match (text(&status["reason"]), text(&status["phase"])) {
        ("", "") => "Unknown".to_owned(),
        ("", phase) => phase.to_owned(),
        (reason, _) => reason.to_owned(),
    };
    if condition(pod, "PodScheduled").is_some_and(|c| c["reason"] == "SchedulingGated") {
        reason = "SchedulingGated".to_owned();
    }
    let sidecars_total = list(&pod["spec"]["initContainers"]).iter().filter(|c| c["restartPolicy"] == "Always").count();
    let total = list(&pod["spec"]["containers"]).len() + sidecars_total;
    let mut tally = Tally::default();
    let mut sidecars = Tally::default();
    let init = initializing(pod, &mut tally, &mut sidecars);
    let initialized = condition(pod, "Initialized").is_some_and(|c| c["status"] == "True");
    let still = init.is_some();
    if let Some(r) = init {
        reason = r;
    }
    if !still || initialized {
        tally.restarts = sidecars.restarts;
        tally.last_restart = sidecars.last_restart;
        let mut running = false;
        for c in list(&status["containerStatuses"]).iter().rev() {
            tally.count(c);
            let waiting = text(&c["state"]["waiting"]["reason"]);
            if !waiting.is_empty() {
                reason = waiting.to_owned();
            } else if c["state"]["terminated"].is_object() {
                reason = ended(&c["state"]["terminated"]);
            } else if c["ready"] == true && c["state"]["running"].is_object() {
                running = true;
                tally.ready += 1;
            }
        }
        // One container has ended and another still runs.
        if reason == "Completed" && running {
            let ready = condition(pod, "Ready").is_some_and(|c| c["status"] == "True");
            reason = if ready { "Running" } else { "NotReady" }.to_owned();
        }
    }
    let over = matches!(text(&status["phase"]), "Succeeded" | "Failed");
    if pod["metadata"]["deletionTimestamp"].is_string() {
        if status["reason"] == "NodeLost" {
            reason = "Unknown".to_owned();
        } else if !over {
            reason = "Terminating".to_owned();
        }
    }
    let restarts = match tally.last_restart {
        Some(t) if tally.restarts > 0 => {
            format!("{} ({} ago)", tally.restarts, age::human(now.as_second() - t.as_second()))
        }
        _ => tally.restarts.to_string(),
    };
    PodColumns { ready: format!("{}/{total}", tally.ready), status: reason, restarts }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use serde_json::json;

    fn of(pod: Value) -> (String, String, String) {
        let c = columns(&pod, "2026-01-01T00:10:00Z".parse().unwrap());
        (c.ready, c.status, c.restarts)
    }
    fn t(a: &str, b: &str, c: &str) -> (String, String, String) {
        (a.into(), b.into(), c.into())
    }
    fn two() -> Value {
        json!([{"name":"a"},{"name":"b"}])
    }

    #[test]
    fn table() {
        let running = json!({"name":"a","ready":true,"restartCount":0,"state":{"running":{}}});
        let crash = json!({"name":"b","ready":false,"restartCount":3,"state":{"waiting":{"reason":"CrashLoopBackOff"}},
            "lastState":{"terminated":{"finishedAt":"2026-01-01T00:09:50Z"}}});
        let done = json!({"name":"b","ready":false,"restartCount":0,"state":{"terminated":{"exitCode":0,"reason":"Completed"}}});
        let killed =
            json!({"name":"b","ready":false,"restartCount":0,"state":{"terminated":{"exitCode":137,"signal":9}}});
        let pod = |phase: &str, statuses: Value| {
            json!({"metadata":{},"spec":{"containers":two()},
            "status":{"phase":phase,"containerStatuses":statuses}})
        };
        assert_eq!(of(pod("Pending", json!([]))), t("0/2", "Pending", "0"));
        assert_eq!(of(pod("Running", json!([running.clone(), crash]))), t("1/2", "CrashLoopBackOff", "3 (10s ago)"));
        assert_eq!(of(pod("Running", json!([running.clone(), done.clone()]))), t("1/2", "NotReady", "0"));
        assert_eq!(of(pod("Failed", json!([killed]))), t("0/2", "Signal:9", "0"));
        let mut ending = pod("Running", json!([running.clone()]));
        ending["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:10:00Z");
        assert_eq!(of(ending), t("1/2", "Terminating", "0"));
        let mut over = pod("Succeeded", json!([done]));
        over["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:10:00Z");
        assert_eq!(of(over), t("0/2", "Completed", "0"));
        let mut evicted = pod("Failed", json!([]));
        evicted["status"]["reason"] = json!("Evicted");
        assert_eq!(of(evicted), t("0/2", "Evicted", "0"));
    }

    #[test]
    fn init_containers() {
        let pod = |init: Value| {
            json!({"metadata":{},"spec":{"containers":two(),"initContainers":[{"name":"i"},{"name":"j"}]},
            "status":{"phase":"Pending","initContainerStatuses":init}})
        };
        let ok = json!({"name":"i","state":{"terminated":{"exitCode":0}}});
        assert_eq!(of(pod(json!([{"name":"i","state":{"running":{}}}]))), t("0/2", "Init:0/2", "0"));
        assert_eq!(
            of(pod(json!([ok, {"name":"j","restartCount":2,"state":{"terminated":{"exitCode":1,"reason":"Error"}}}]))),
            t("0/2", "Init:Error", "2")
        );
        assert_eq!(
            of(pod(json!([{"name":"i","state":{"waiting":{"reason":"ImagePullBackOff"}}}]))),
            t("0/2", "Init:ImagePullBackOff", "0")
        );
        assert_eq!(
            of(pod(json!([{"name":"i","state":{"waiting":{"reason":"PodInitializing"}}}]))),
            t("0/2", "Init:0/2", "0")
        );
    }

    #[test]
    fn a_gated_pod_says_so() {
        let pod = |reason: &str| {
            json!({"metadata":{},"spec":{"containers":[{"name":"a"}]},"status":{"phase":"Pending","conditions":[
                {"type":"PodScheduled","status":"False","reason":reason}]}})
        };
        assert_eq!(of(pod("SchedulingGated")), t("0/1", "SchedulingGated", "0"));
        assert_eq!(of(pod("Unschedulable")), t("0/1", "Pending", "0"));
    }

    #[test]
    fn sidecars_are_ready_containers() {
        let pod = json!({"metadata":{},"spec":{"containers":[{"name":"a"}],"initContainers":[{"name":"s","restartPolicy":"Always"}]},
            "status":{"phase":"Running","initContainerStatuses":[{"name":"s","started":true,"ready":true,"restartCount":1,"state":{"running":{}}}],
              "containerStatuses":[{"name":"a","ready":true,"restartCount":1,"state":{"running":{}}}]}});
        assert_eq!(of(pod), t("2/2", "Running", "2"));
    }
}
