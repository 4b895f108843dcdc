//! Who is at the other end: the identity a certificate carries in its subject.
//!
//! The organisation names the role, the common name names the node (or the person). A
//! certificate from the cluster's CA with any other subject identifies nobody.

use std::fmt;

/// Subject organisation of administrators.
pub const ADMINS: &str = "trellis:admins";
/// Subject organisation of control-plane members.
pub const MEMBERS: &str = "trellis:members";
/// Subject organisation of node agents.
pub const AGENTS: &str = "trellis:agents";
/// Subject organisation of network daemons.
pub const NETDS: &str = "trellis:netds";

/// The server name every member's certificate carries, whatever its address.
pub const MEMBER_SERVER_NAME: &str = "control-plane.trellis";

/// The server name of the agent of `node`.
#[must_use]
pub fn agent_server_name(node: &str) -> String {
    format!("{node}.agent.trellis")
}

/// Who holds a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// May do everything. The name is for the log.
    Admin(String),
    /// A control-plane member, by node name.
    Member(String),
    /// The agent of the named node.
    Agent(String),
    /// The netd of the named node.
    Netd(String),
}

/// Why a certificate identifies nobody.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Not a certificate at all.
    #[error("the certificate does not parse: {0}")]
    Malformed(String),
    /// A subject that no role has.
    #[error("the certificate's subject {subject:?} names no role of this cluster")]
    NoRole {
        /// The subject as text.
        subject: String,
    },
}

impl Identity {
    /// The administrator that `cluster init` makes.
    #[must_use]
    pub fn admin() -> Self {
        Self::Admin("admin".to_owned())
    }

    /// Reads the identity out of a DER certificate (which the TLS layer has already verified).
    pub fn from_der(der: &[u8]) -> Result<Self, IdentityError> {
        use x509_parser::prelude::{FromDer, X509Certificate};
        let (_, cert) = X509Certificate::from_der(der).map_err(|e| IdentityError::Malformed(e.to_string()))?;
        let subject = cert.subject();
        let text = |mut it: Box<dyn Iterator<Item = &x509_parser::x509::AttributeTypeAndValue<'_>> + '_>| {
            it.next().and_then(|a| a.as_str().ok()).map(str::to_owned)
        };
        let cn = text(Box::new(subject.iter_common_name()));
        let o = text(Box::new(subject.iter_organization()));
        match (o.as_deref(), cn) {
            (Some(ADMINS), Some(n)) => Ok(Self::Admin(n)),
            (Some(MEMBERS), Some(n)) => Ok(Self::Member(n)),
            (Some(AGENTS), Some(n)) => Ok(Self::Agent(n)),
            (Some(NETDS), Some(n)) => Ok(Self::Netd(n)),
            _ => Err(IdentityError::NoRole { subject: subject.to_string() }),
        }
    }

    /// The organisation of this identity's certificates.
    #[must_use]
    pub fn organization(&self) -> &'static str {
        match self {
            Self::Admin(_) => ADMINS,
            Self::Member(_) => MEMBERS,
            Self::Agent(_) => AGENTS,
            Self::Netd(_) => NETDS,
        }
    }

    /// The common name: a person's or a node's.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Admin(n) | Self::Member(n) | Self::Agent(n) | Self::Netd(n) => n,
        }
    }

    /// The DNS names a certificate of this identity carries.
    #[must_use]
    pub fn server_names(&self) -> Vec<String> {
        match self {
            Self::Admin(_) => Vec::new(),
            Self::Member(n) => vec![MEMBER_SERVER_NAME.to_owned(), format!("{n}.member.trellis")],
            Self::Agent(n) => vec!["agent.trellis".to_owned(), agent_server_name(n)],
            Self::Netd(n) => vec![format!("{n}.netd.trellis")],
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = match self {
            Self::Admin(_) => "admin",
            Self::Member(_) => "member",
            Self::Agent(_) => "agent",
            Self::Netd(_) => "netd",
        };
        write!(f, "{role}:{}", self.name())
    }
}
