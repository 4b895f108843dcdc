//! Names and identities: their types, their rules, and how one is generated.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

macro_rules! text_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes the text as it is; the API server has checked it.
            pub fn new(text: impl Into<Arc<str>>) -> Self {
                $name(text.into())
            }
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl From<&str> for $name {
            fn from(s: &str) -> Self {
                $name(s.into())
            }
        }
        impl From<String> for $name {
            fn from(s: String) -> Self {
                $name(s.into())
            }
        }
        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                &*self.0 == other
            }
        }
        impl PartialEq<&str> for $name {
            fn eq(&self, other: &&str) -> bool {
                &*self.0 == *other
            }
        }
    };
}

text_newtype!(
    /// The name of a Node, which is also the machine's name in gossip and certificates.
    NodeName
);
text_newtype!(
    /// `metadata.uid` of a Pod: never used twice, unlike its name.
    PodUid
);

/// A revision of the store: each changed object gets its own, consecutively.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Longest DNS-1123 label, RFC 1123 section 2.1.
pub const LABEL_MAX_BYTES: usize = 63;
/// Longest DNS-1123 subdomain, RFC 1123 section 2.1.
pub const SUBDOMAIN_MAX_BYTES: usize = 253;

const LABEL_MESSAGE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_MESSAGE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const UNDERSCORE_MESSAGE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')";
const NAME_PART_MESSAGE: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE_MESSAGE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

fn max_len(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

fn is_label(s: &str) -> bool {
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let b = s.as_bytes();
    !b.is_empty()
        && b.iter().all(|&c| ok(c) || c == b'-')
        && b.first().copied().is_some_and(ok)
        && b.last().copied().is_some_and(ok)
}

fn is_name_part(s: &str) -> bool {
    let b = s.as_bytes();
    !b.is_empty()
        && b.iter().all(|&c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
        && b.first().is_some_and(u8::is_ascii_alphanumeric)
        && b.last().is_some_and(u8::is_ascii_alphanumeric)
}

/// Kubernetes' complaints about `s` as a DNS-1123 label; none when it is one.
pub fn check_dns1123_label(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    if s.len() > LABEL_MAX_BYTES {
        out.push(max_len(LABEL_MAX_BYTES));
    }
    if !is_label(s) {
        out.push(LABEL_MESSAGE.to_owned());
    }
    out
}

/// Kubernetes' complaints about `s` as a DNS-1123 subdomain; none when it is one.
pub fn check_dns1123_subdomain(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    if s.len() > SUBDOMAIN_MAX_BYTES {
        out.push(max_len(SUBDOMAIN_MAX_BYTES));
    }
    if !s.split('.').all(is_label) {
        out.push(SUBDOMAIN_MESSAGE.to_owned());
    }
    out
}

/// Kubernetes' complaints about `s` as a DNS-1123 subdomain in which labels may hold and begin with
/// '_', as service records do; none when it is one.
pub fn check_dns1123_subdomain_with_underscore(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    if s.len() > SUBDOMAIN_MAX_BYTES {
        out.push(max_len(SUBDOMAIN_MAX_BYTES));
    }
    let is = |label: &str| {
        let rest = label.strip_prefix('_').unwrap_or(label);
        !rest.starts_with('_') && !rest.ends_with('_') && is_label(&rest.replace('_', "0"))
    };
    if !s.split('.').all(is) {
        out.push(UNDERSCORE_MESSAGE.to_owned());
    }
    out
}

/// Kubernetes' complaints about a label or annotation key, `[prefix/]name`.
pub fn check_qualified_name(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    let parts: Vec<&str> = s.split('/').collect();
    let name = match parts.as_slice() {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                out.push("prefix part must be non-empty".to_owned());
            } else {
                out.extend(check_dns1123_subdomain(prefix).into_iter().map(|m| format!("prefix part {m}")));
            }
            name
        }
        _ => {
            out.push("a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')".to_owned());
            return out;
        }
    };
    if name.is_empty() {
        out.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_MAX_BYTES {
        out.push(format!("name part {}", max_len(LABEL_MAX_BYTES)));
    }
    if !is_name_part(name) {
        out.push(NAME_PART_MESSAGE.to_owned());
    }
    out
}

/// Kubernetes' complaints about a label's value.
pub fn check_label_value(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    if s.len() > LABEL_MAX_BYTES {
        out.push(max_len(LABEL_MAX_BYTES));
    }
    if !s.is_empty() && !is_name_part(s) {
        out.push(LABEL_VALUE_MESSAGE.to_owned());
    }
    out
}

/// Kubernetes' complaints about a named port (IANA service name, RFC 6335 section 5.1).
pub fn check_port_name(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    let b = s.as_bytes();
    if s.len() > 15 {
        out.push(max_len(15));
    }
    if !b.iter().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == b'-') || s.is_empty() {
        out.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !b.iter().any(u8::is_ascii_lowercase) {
        out.push("must contain at least one letter (a-z)".to_owned());
    }
    if s.contains("--") {
        out.push("must not contain consecutive hyphens".to_owned());
    }
    if s.starts_with('-') || s.ends_with('-') {
        out.push("must not begin or end with a hyphen".to_owned());
    }
    out
}

/// Letters and digits that make no words and are not mistaken for each other; Kubernetes'
/// `rand.String` and `SafeEncodeString` use them.
pub const SAFE_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Characters that generateName appends, as in Kubernetes.
const SUFFIX_LEN: usize = 5;

/// A name made from `metadata.generateName` and randomness of the caller, as Kubernetes does: the
/// prefix cut so that the whole fits a label, and five safe characters.
pub fn generated_name(prefix: &str, random: u64) -> String {
    let mut cut = prefix.len().min(LABEL_MAX_BYTES - SUFFIX_LEN);
    while !prefix.is_char_boundary(cut) {
        cut -= 1;
    }
    let mut name = prefix[..cut].to_owned();
    let mut r = random;
    for _ in 0..SUFFIX_LEN {
        let i = usize::try_from(r % SAFE_ALPHABET.len() as u64).unwrap_or(0);
        name.push(char::from(SAFE_ALPHABET[i]));
        r /= SAFE_ALPHABET.len() as u64;
    }
    name
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn labels() {
        for ok in ["a", "a-b", "0a", "123", &"x".repeat(63)] {
            assert!(check_dns1123_label(ok).is_empty(), "{ok}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", &"x".repeat(64)] {
            assert!(!check_dns1123_label(bad).is_empty(), "{bad}");
        }
    }

    #[test]
    fn subdomains() {
        assert!(check_dns1123_subdomain("a.b-c.d").is_empty());
        for bad in ["", "a..b", ".a", "a.", "a_b", "A.b"] {
            assert!(!check_dns1123_subdomain(bad).is_empty(), "{bad}");
        }
    }

    #[test]
    fn qualified_names_and_values() {
        for ok in ["app", "app.kubernetes.io/name", "A_b.c", "x/Y"] {
            assert!(check_qualified_name(ok).is_empty(), "{ok}");
        }
        for bad in ["", "/a", "a/", "a/b/c", "-a", "A/b", "a b"] {
            assert!(!check_qualified_name(bad).is_empty(), "{bad}");
        }
        assert!(check_label_value("").is_empty());
        assert!(check_label_value("v1.2_x").is_empty());
        assert!(!check_label_value("no spaces").is_empty());
    }

    #[test]
    fn port_names() {
        assert!(check_port_name("http").is_empty());
        for bad in ["", "80", "HTTP", "a--b", "-a", "much-too-long-name"] {
            assert!(!check_port_name(bad).is_empty(), "{bad}");
        }
    }

    #[test]
    fn generated_names_fit_a_label() {
        let n = generated_name("web-", 12345);
        assert_eq!(n.len(), 9);
        assert!(n.starts_with("web-"));
        let long = generated_name(&"x".repeat(100), u64::MAX);
        assert_eq!(long.len(), 63);
        assert!(check_dns1123_label(&long).is_empty());
        assert_ne!(generated_name("a", 1), generated_name("a", 2));
    }
}
