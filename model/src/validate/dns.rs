//! Rules for a Pod's names: how it resolves them, and its hosts file.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{PodDNSConfig, PodSpec};

use super::{complain, one_of, shown};
use crate::field::{FieldError, Path};
use crate::names;

/// Most name servers: what libc asks.
const SERVERS_MAX: usize = 3;
/// Most search paths.
const SEARCHES_MAX: usize = 32;
/// Most characters of all search paths, with the spaces between them.
const SEARCH_CHARS_MAX: usize = 2048;

pub(super) fn dns(s: &PodSpec, path: &Path, out: &mut Vec<FieldError>) {
    one_of(
        out,
        &path.child("dnsPolicy"),
        s.dns_policy.as_deref(),
        &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
    );
    let p = path.child("dnsConfig");
    match (&s.dns_config, s.dns_policy.as_deref()) {
        (None, Some("None")) => {
            out.push(FieldError::required(&p, "must provide `dnsConfig` when `dnsPolicy` is None"));
        }
        (Some(c), Some("None")) if c.nameservers.as_ref().is_none_or(Vec::is_empty) => {
            let m = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            out.push(FieldError::required(&p.child("nameservers"), m));
        }
        (Some(c), _) => config(c, &p, out),
        (None, _) => {}
    }
    for (i, a) in s.host_aliases.iter().flatten().enumerate() {
        let p = path.child("hostAliases").index(i);
        ip(&a.ip, &p.child("ip"), out);
        for (j, h) in a.hostnames.iter().flatten().enumerate() {
            complain(out, &p.child("hostnames").index(j), h, names::check_dns1123_subdomain(h));
        }
    }
}

fn config(c: &PodDNSConfig, path: &Path, out: &mut Vec<FieldError>) {
    let (servers, p) = (c.nameservers.as_deref().unwrap_or_default(), path.child("nameservers"));
    if servers.len() > SERVERS_MAX {
        out.push(FieldError::invalid(&p, shown(&servers), "must not have more than 3 nameservers"));
    }
    for (i, server) in servers.iter().enumerate() {
        ip(server, &p.index(i), out);
    }
    let (searches, p) = (c.searches.as_deref().unwrap_or_default(), path.child("searches"));
    if searches.len() > SEARCHES_MAX {
        out.push(FieldError::invalid(&p, shown(&searches), "must not have more than 32 search paths"));
    }
    if searches.join(" ").len() > SEARCH_CHARS_MAX {
        let m = "must not have more than 2048 characters (including spaces) in the search list";
        out.push(FieldError::invalid(&p, shown(&searches), m));
    }
    for (i, search) in searches.iter().enumerate().filter(|(_, s)| *s != ".") {
        let search = search.strip_suffix('.').unwrap_or(search);
        complain(out, &p.index(i), search, names::check_dns1123_subdomain_with_underscore(search));
    }
    for (i, option) in c.options.iter().flatten().enumerate() {
        if option.name.as_deref().unwrap_or_default().is_empty() {
            out.push(FieldError::required(&path.child("options").index(i), "must not be empty"));
        }
    }
}

fn ip(text: &str, path: &Path, out: &mut Vec<FieldError>) {
    if text.parse::<IpAddr>().is_err() {
        out.push(FieldError::invalid(path, text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"));
    }
}
