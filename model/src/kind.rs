//! The kinds that Trellis serves, and what the API says about each.

use std::fmt;

/// One kind of object that Trellis serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// core/v1 Namespace
    Namespace,
    /// core/v1 Node
    Node,
    /// core/v1 Pod
    Pod,
    /// apps/v1 ReplicaSet
    ReplicaSet,
    /// apps/v1 Deployment
    Deployment,
    /// networking.k8s.io/v1 NetworkPolicy
    NetworkPolicy,
    /// core/v1 ConfigMap
    ConfigMap,
    /// core/v1 Secret
    Secret,
    /// core/v1 Event
    Event,
}

struct Facts {
    group: &'static str,
    name: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    namespaced: bool,
}

/// A manifest names a kind that Trellis does not serve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no matches for kind {kind:?} in version {api_version:?}: Trellis serves {}", supported())]
pub struct UnknownKind {
    /// `apiVersion` as written.
    pub api_version: String,
    /// `kind` as written.
    pub kind: String,
}

fn supported() -> String {
    let all: Vec<String> = Kind::ALL.iter().map(|k| format!("{} ({})", k.name(), k.api_version())).collect();
    all.join(", ")
}

impl Kind {
    /// Every kind, in the order in which they are best created.
    pub const ALL: [Kind; 9] = [
        Kind::Namespace,
        Kind::Node,
        Kind::ConfigMap,
        Kind::Secret,
        Kind::NetworkPolicy,
        Kind::Pod,
        Kind::ReplicaSet,
        Kind::Deployment,
        Kind::Event,
    ];

    fn facts(self) -> Facts {
        let (group, name, plural, short, namespaced): (_, _, _, &'static [&'static str], _) = match self {
            Kind::Namespace => ("", "Namespace", "namespaces", &["ns"], false),
            Kind::Node => ("", "Node", "nodes", &["no"], false),
            Kind::Pod => ("", "Pod", "pods", &["po"], true),
            Kind::ReplicaSet => ("apps", "ReplicaSet", "replicasets", &["rs"], true),
            Kind::Deployment => ("apps", "Deployment", "deployments", &["deploy"], true),
            Kind::NetworkPolicy => ("networking.k8s.io", "NetworkPolicy", "networkpolicies", &["netpol"], true),
            Kind::ConfigMap => ("", "ConfigMap", "configmaps", &["cm"], true),
            Kind::Secret => ("", "Secret", "secrets", &[], true),
            Kind::Event => ("", "Event", "events", &["ev"], true),
        };
        Facts { group, name, plural, short, namespaced }
    }

    /// API group; empty for core.
    pub fn group(self) -> &'static str {
        self.facts().group
    }

    /// API version inside the group.
    pub fn version(self) -> &'static str {
        "v1"
    }

    /// `apiVersion` as manifests write it.
    pub fn api_version(self) -> &'static str {
        match self.group() {
            "apps" => "apps/v1",
            "networking.k8s.io" => "networking.k8s.io/v1",
            _ => "v1",
        }
    }

    /// The kind's name, `Pod`.
    pub fn name(self) -> &'static str {
        self.facts().name
    }

    /// Resource name, `pods`.
    pub fn plural(self) -> &'static str {
        self.facts().plural
    }

    /// Short names that the command line takes.
    pub fn short_names(self) -> &'static [&'static str] {
        self.facts().short
    }

    /// Whether objects of this kind live in a Namespace.
    pub fn namespaced(self) -> bool {
        self.facts().namespaced
    }

    /// `pods`, `deployments.apps`: the resource as Kubernetes' messages name it.
    pub fn qualified_plural(self) -> String {
        match self.group() {
            "" => self.plural().to_owned(),
            g => format!("{}.{g}", self.plural()),
        }
    }

    /// `pod`, `deployment.apps`: the prefix kubectl prints before `/name`.
    pub fn qualified_singular(self) -> String {
        let singular = self.name().to_ascii_lowercase();
        match self.group() {
            "" => singular,
            g => format!("{singular}.{g}"),
        }
    }

    /// The kind of an identity on the wire.
    pub fn from_group_kind(group: &str, kind: &str) -> Result<Kind, UnknownKind> {
        Kind::ALL
            .into_iter()
            .find(|k| k.group() == group && k.name() == kind)
            .ok_or_else(|| UnknownKind { api_version: group.to_owned(), kind: kind.to_owned() })
    }

    /// The kind of a manifest.
    pub fn from_api_version_kind(api_version: &str, kind: &str) -> Result<Kind, UnknownKind> {
        Kind::ALL
            .into_iter()
            .find(|k| k.api_version() == api_version && k.name() == kind)
            .ok_or_else(|| UnknownKind { api_version: api_version.to_owned(), kind: kind.to_owned() })
    }

    /// The kind that a person means by `po`, `pod`, `pods`, `Deployment` or `deployments.apps`.
    pub fn from_resource_name(word: &str) -> Option<Kind> {
        let word = word.to_ascii_lowercase();
        let (bare, group) = match word.split_once('.') {
            Some((b, g)) => (b, Some(g.strip_prefix("v1.").unwrap_or(g))),
            None => (word.as_str(), None),
        };
        Kind::ALL.into_iter().find(|k| {
            group.is_none_or(|g| g == k.group())
                && (k.plural() == bare || k.name().to_ascii_lowercase() == bare || k.short_names().contains(&bare))
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn every_kind_is_found_by_each_of_its_names() {
        for k in Kind::ALL {
            assert_eq!(Kind::from_group_kind(k.group(), k.name()).unwrap(), k);
            assert_eq!(Kind::from_api_version_kind(k.api_version(), k.name()).unwrap(), k);
            assert_eq!(Kind::from_resource_name(k.plural()), Some(k));
            assert_eq!(Kind::from_resource_name(&k.qualified_plural()), Some(k));
            assert_eq!(Kind::from_resource_name(&k.qualified_singular()), Some(k));
            for s in k.short_names() {
                assert_eq!(Kind::from_resource_name(s), Some(k));
            }
        }
        assert_eq!(Kind::from_resource_name("pods.apps"), None);
    }

    #[test]
    fn an_unknown_kind_says_what_is_served() {
        let e = Kind::from_api_version_kind("batch/v1", "CronJob").unwrap_err();
        let text = e.to_string();
        assert!(text.starts_with("no matches for kind \"CronJob\" in version \"batch/v1\""), "{text}");
        assert!(text.contains("Deployment (apps/v1)"), "{text}");
    }
}
