//! Rules for probes and lifecycle hooks.

use k8s_openapi::api::core::v1::{
    Container, ExecAction, GRPCAction, HTTPGetAction, LifecycleHandler, PodSpec, Probe, SleepAction, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{complain, not_negative, one_of, port_number};
use crate::field::{FieldError, Path};
use crate::names;

pub(super) fn all(c: &Container, s: &PodSpec, path: &Path, out: &mut Vec<FieldError>) {
    if let Some(p) = &c.liveness_probe {
        let path = path.child("livenessProbe");
        probe(p, &path, out);
        once(p, &path, out);
        grace(p, &path, out);
    }
    if let Some(p) = &c.startup_probe {
        let path = path.child("startupProbe");
        probe(p, &path, out);
        once(p, &path, out);
        grace(p, &path, out);
    }
    if let Some(p) = &c.readiness_probe {
        let path = path.child("readinessProbe");
        probe(p, &path, out);
        if let Some(v) = p.termination_grace_period_seconds {
            out.push(FieldError::invalid(
                &path.child("terminationGracePeriodSeconds"),
                v,
                "must not be set for readinessProbes",
            ));
        }
    }
    if let Some(l) = &c.lifecycle {
        for (field, hook) in [("postStart", &l.post_start), ("preStop", &l.pre_stop)] {
            let Some(hook) = hook else { continue };
            handler(&of_hook(hook), s.termination_grace_period_seconds, &path.child("lifecycle").child(field), out);
        }
    }
}

/// What is done to a container; just one of them.
struct Handler<'a> {
    exec: Option<&'a ExecAction>,
    http_get: Option<&'a HTTPGetAction>,
    tcp_socket: Option<&'a TCPSocketAction>,
    grpc: Option<&'a GRPCAction>,
    sleep: Option<&'a SleepAction>,
}

fn of_hook(h: &LifecycleHandler) -> Handler<'_> {
    Handler {
        exec: h.exec.as_ref(),
        http_get: h.http_get.as_ref(),
        tcp_socket: h.tcp_socket.as_ref(),
        grpc: None,
        sleep: h.sleep.as_ref(),
    }
}

fn of_probe(p: &Probe) -> Handler<'_> {
    Handler {
        exec: p.exec.as_ref(),
        http_get: p.http_get.as_ref(),
        tcp_socket: p.tcp_socket.as_ref(),
        grpc: p.grpc.as_ref(),
        sleep: None,
    }
}

/// `grace`: the longest that a hook may sleep; unknown where it is not valid itself.
fn handler(h: &Handler<'_>, grace: Option<i64>, path: &Path, out: &mut Vec<FieldError>) {
    let mut given = 0;
    let mut first = |field: &str, there: bool, out: &mut Vec<FieldError>| {
        given += usize::from(there);
        if there && given > 1 {
            out.push(FieldError::forbidden(&path.child(field), "may not specify more than 1 handler type"));
        }
        there && given == 1
    };
    if first("exec", h.exec.is_some(), out) && h.exec.is_some_and(|e| e.command.as_ref().is_none_or(Vec::is_empty)) {
        out.push(FieldError::required(&path.child("exec").child("command"), ""));
    }
    if first("httpGet", h.http_get.is_some(), out)
        && let Some(get) = h.http_get
    {
        http_get(get, &path.child("httpGet"), out);
    }
    if first("tcpSocket", h.tcp_socket.is_some(), out)
        && let Some(t) = h.tcp_socket
    {
        port(&t.port, &path.child("tcpSocket").child("port"), out);
    }
    if first("grpc", h.grpc.is_some(), out)
        && let Some(g) = h.grpc
    {
        port_number(out, &path.child("grpc").child("port"), g.port);
    }
    if first("sleep", h.sleep.is_some(), out)
        && let (Some(s), Some(grace)) = (h.sleep, grace)
        && !(0..=grace).contains(&s.seconds)
    {
        let m = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        out.push(FieldError::invalid(&path.child("sleep"), s.seconds, &m));
    }
    if given == 0 {
        out.push(FieldError::required(path, "must specify a handler type"));
    }
}

fn once(p: &Probe, path: &Path, out: &mut Vec<FieldError>) {
    if let Some(n) = p.success_threshold.filter(|n| *n != 1) {
        out.push(FieldError::invalid(&path.child("successThreshold"), n, "must be 1"));
    }
}

fn grace(p: &Probe, path: &Path, out: &mut Vec<FieldError>) {
    if let Some(n) = p.termination_grace_period_seconds.filter(|n| *n <= 0) {
        let p = path.child("terminationGracePeriodSeconds");
        out.push(FieldError::invalid(&p, n, "must be greater than 0"));
    }
}

fn probe(p: &Probe, path: &Path, out: &mut Vec<FieldError>) {
    handler(&of_probe(p), None, path, out);
    for (field, value) in [
        ("initialDelaySeconds", p.initial_delay_seconds),
        ("timeoutSeconds", p.timeout_seconds),
        ("periodSeconds", p.period_seconds),
        ("successThreshold", p.success_threshold),
        ("failureThreshold", p.failure_threshold),
    ] {
        not_negative(out, &path.child(field), value.map(i64::from));
    }
}

fn http_get(h: &HTTPGetAction, path: &Path, out: &mut Vec<FieldError>) {
    if h.path.as_deref().unwrap_or_default().is_empty() {
        out.push(FieldError::required(&path.child("path"), ""));
    }
    port(&h.port, &path.child("port"), out);
    one_of(out, &path.child("scheme"), h.scheme.as_deref(), &["HTTP", "HTTPS"]);
    for (i, header) in h.http_headers.iter().flatten().enumerate() {
        let ok =
            !header.name.is_empty() && header.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        if !ok {
            out.push(FieldError::invalid(
                &path.child("httpHeaders").index(i).child("name"),
                header.name.as_str(),
                "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')",
            ));
        }
    }
}

fn port(value: &IntOrString, path: &Path, out: &mut Vec<FieldError>) {
    match value {
        IntOrString::Int(n) => port_number(out, path, *n),
        IntOrString::String(s) => complain(out, path, s, names::check_port_name(s)),
    }
}
