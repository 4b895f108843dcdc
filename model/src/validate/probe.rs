//! Rules for probes.

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{complain, not_negative, one_of, port_number};
use crate::field::{FieldError, Path};
use crate::names;

pub(super) fn all(c: &Container, path: &Path, out: &mut Vec<FieldError>) {
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
    let handlers = [p.exec.is_some(), p.http_get.is_some(), p.tcp_socket.is_some(), p.grpc.is_some()];
    match handlers.iter().filter(|h| **h).count() {
        0 => out.push(FieldError::required(path, "must specify a handler type")),
        1 => {}
        _ => out.push(FieldError::forbidden(path, "may not specify more than 1 handler type")),
    }
    if let Some(e) = &p.exec
        && e.command.as_ref().is_none_or(Vec::is_empty)
    {
        out.push(FieldError::required(&path.child("exec").child("command"), ""));
    }
    if let Some(h) = &p.http_get {
        http_get(h, &path.child("httpGet"), out);
    }
    if let Some(t) = &p.tcp_socket {
        port(&t.port, &path.child("tcpSocket").child("port"), out);
    }
    if let Some(g) = &p.grpc {
        port_number(out, &path.child("grpc").child("port"), g.port);
    }
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
