//! The cluster's public-key infrastructure: the CA, what it signs for each identity, and the sealing
//! of what must not lie about in clear (Secrets, the CA's key).
//!
//! Used by `trellis cluster init|join` and by the control plane. A certificate says exactly one
//! thing: which role of which node (or the administrator) holds the key. Names and uses come
//! from the [`Identity`], never from the request, so that a request cannot smuggle any in.
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use crate::identity::Identity;

mod seal;

use seal::ENVELOPE_VERSION;
pub use seal::{Key, base64, from_base64, hex, open, seal};

/// Ten years: the CA is replaced by making it anew, not by renewal.
pub const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
/// One year for daemons and administrators, unless the cluster was made with another; daemons
/// renew at two thirds of it.
pub const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(365 * 86_400);
/// Certificates are valid from an hour ago, so that a machine whose clock is behind can join.
pub const CLOCK_SKEW: Duration = Duration::from_secs(3_600);

/// Ties a sealed CA key to its purpose.
const CA_KEY_CONTEXT: &[u8] = b"trellis ca key";

/// What can go wrong with keys and certificates.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A certificate, key or request could not be made or signed.
    #[error("{what}: {source}")]
    Crypto {
        /// The thing that was being made or read.
        what: String,
        /// rcgen's reason.
        source: rcgen::Error,
    },
    /// PEM or DER that is not what it should be.
    #[error("{what} is malformed: {why}")]
    Malformed {
        /// The thing that was read.
        what: String,
        /// The reason.
        why: String,
    },
    /// The request asks for another identity than may be signed.
    #[error("the certificate request is for CN={cn:?}, O={organization:?}, but {expected} may be signed here")]
    Subject {
        /// The common name asked for.
        cn: String,
        /// The organization asked for.
        organization: String,
        /// What would have been signed.
        expected: String,
    },
    /// A sealed value was written by a newer program.
    #[error("sealed data has format version {0}, this program reads version {ENVELOPE_VERSION}: upgrade it")]
    Version(u8),
    /// A sealed value was sealed with another key.
    #[error("sealed with the key {found}, but the key here is {expected}")]
    WrongKey {
        /// The id in the envelope.
        found: String,
        /// The id of the key at hand.
        expected: String,
    },
    /// The seal is broken: tampered with, truncated, or of another object.
    #[error("the seal of {0} is broken")]
    Broken(String),
}

fn crypto(what: impl Into<String>) -> impl FnOnce(rcgen::Error) -> PkiError {
    let what = what.into();
    move |source| PkiError::Crypto { what, source }
}

fn malformed(what: &str, why: impl ToString) -> PkiError {
    PkiError::Malformed { what: what.into(), why: why.to_string() }
}

fn subject(identity: &Identity) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, identity.organization());
    name.push(DnType::CommonName, identity.name());
    name
}

/// What is signed for an identity, whatever its request says.
fn params(identity: &Identity, until: SystemTime) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    let now = SystemTime::now();
    params.not_before = (now - skew(until.duration_since(now).unwrap_or_default())).into();
    params.not_after = until.into();
    params.distinguished_name = subject(identity);
    params.subject_alt_names = identity
        .server_names()
        .into_iter()
        .map(|name| Ok(SanType::DnsName(name.try_into()?)))
        .collect::<Result<_, _>>()
        .map_err(crypto(format!("the server names of {identity}")))?;
    // Unique among what the CA signs (RFC 5280, 4.1.2.2); made from the key, as it would be without
    // this, a renewed certificate would have its predecessor's.
    params.serial_number = Some(SerialNumber::from(uuid::Uuid::new_v4().as_bytes().to_vec()));
    params.is_ca = IsCa::NoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// How far back a certificate's validity begins. A short one keeps most of its life ahead, or it
/// would be due for renewal from the start.
fn skew(lifetime: Duration) -> Duration {
    if lifetime.is_zero() { CLOCK_SKEW } else { CLOCK_SKEW.min(lifetime / 4) }
}

/// A private key and what belongs to it, as PEM.
#[derive(Debug, Clone)]
pub struct KeyAnd {
    /// The private key (PKCS #8). Wiped when dropped.
    pub key_pem: Zeroizing<String>,
    /// The certificate, or the request for one.
    pub pem: String,
}

/// Makes a key and a request to certify it; the key stays where it was made.
///
/// # Errors
/// [`PkiError::Crypto`] when the system has no randomness or the name cannot be encoded.
pub fn request(identity: &Identity) -> Result<KeyAnd, PkiError> {
    let key = KeyPair::generate().map_err(crypto(format!("the key of {}", identity.name())))?;
    let key_pem = Zeroizing::new(key.serialize_pem());
    let pem = request_with(identity, &key_pem)?;
    Ok(KeyAnd { key_pem, pem })
}

/// A request to certify a key that is there already: a renewal then replaces one file, the
/// certificate, and no crash can leave a pair that does not fit.
///
/// # Errors
/// [`PkiError::Crypto`] when the key cannot be read or the name not be encoded.
pub fn request_with(identity: &Identity, key_pem: &str) -> Result<String, PkiError> {
    let what = || format!("the certificate request of {}", identity.name());
    let key = KeyPair::from_pem(key_pem).map_err(crypto(what()))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(identity);
    let csr = params.serialize_request(&key).map_err(crypto(what()))?;
    csr.pem().map_err(crypto(what()))
}

/// The common name and organization that a request asks for; its signature is verified.
///
/// # Errors
/// [`PkiError::Crypto`] when the request is malformed or not signed by its own key.
pub fn request_subject(csr_pem: &str) -> Result<(String, String), PkiError> {
    let csr = CertificateSigningRequestParams::from_pem(csr_pem).map_err(crypto("the certificate request"))?;
    Ok(subject_of(&csr.params.distinguished_name))
}

fn subject_of(name: &DistinguishedName) -> (String, String) {
    let text = |kind: &DnType| match name.get(kind) {
        Some(DnValue::Utf8String(s)) => s.clone(),
        Some(DnValue::PrintableString(s)) => s.as_str().to_owned(),
        _ => String::new(),
    };
    (text(&DnType::CommonName), text(&DnType::OrganizationName))
}

/// The cluster's certificate authority, with its private key.
pub struct CertificateAuthority {
    pem: String,
    key_pem: Zeroizing<String>,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateAuthority").finish_non_exhaustive()
    }
}

impl CertificateAuthority {
    /// Makes a new CA for a cluster.
    ///
    /// # Errors
    /// [`PkiError::Crypto`] when a key cannot be made.
    pub fn create(cluster_name: &str) -> Result<Self, PkiError> {
        let what = || format!("the CA of cluster {cluster_name}");
        let key = KeyPair::generate().map_err(crypto(what()))?;
        let mut params = CertificateParams::default();
        let now = SystemTime::now();
        params.not_before = (now - CLOCK_SKEW).into();
        params.not_after = (now + CA_LIFETIME).into();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "trellis");
        params.distinguished_name.push(DnType::CommonName, format!("{cluster_name} CA"));
        // It signs daemons directly: no CA below it is wanted.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).map_err(crypto(what()))?.pem();
        Self::from_pem(&pem, &key.serialize_pem())
    }

    /// Reads a CA back from its certificate and key.
    ///
    /// # Errors
    /// [`PkiError::Crypto`] when either is malformed.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let key = KeyPair::from_pem(key_pem).map_err(crypto("the CA's key"))?;
        let issuer = Issuer::from_ca_cert_pem(certificate_pem, key).map_err(crypto("the CA's certificate"))?;
        Ok(Self { pem: certificate_pem.to_owned(), key_pem: Zeroizing::new(key_pem.to_owned()), issuer })
    }

    /// Opens a CA whose key was sealed by [`CertificateAuthority::seal_key`].
    ///
    /// # Errors
    /// Those of [`open`], and of [`CertificateAuthority::from_pem`].
    pub fn open(certificate_pem: &str, sealed: &[u8], kek: &Key) -> Result<Self, PkiError> {
        let mut key = open(kek, CA_KEY_CONTEXT, sealed)?;
        let text = std::str::from_utf8(&key).map_err(|e| malformed("the CA's key", e))?;
        let ca = Self::from_pem(certificate_pem, text);
        key.zeroize();
        ca
    }

    /// The CA's key, sealed for the store.
    pub fn seal_key(&self, kek: &Key) -> Vec<u8> {
        seal(kek, CA_KEY_CONTEXT, self.key_pem.as_bytes())
    }

    /// The CA's certificate.
    pub fn certificate_pem(&self) -> &str {
        &self.pem
    }

    /// Signs a request, if it asks for `identity`, for `lifetime` from now on.
    ///
    /// # Errors
    /// [`PkiError::Subject`] when it asks for another one; [`PkiError::Crypto`] when it is
    /// malformed or not signed with its own key.
    pub fn sign(&self, csr_pem: &str, identity: &Identity, lifetime: Duration) -> Result<String, PkiError> {
        let csr = CertificateSigningRequestParams::from_pem(csr_pem).map_err(crypto("the certificate request"))?;
        let (cn, organization) = subject_of(&csr.params.distinguished_name);
        if cn != identity.name() || organization != identity.organization() {
            let expected = format!("CN={:?}, O={:?}", identity.name(), identity.organization());
            return Err(PkiError::Subject { cn, organization, expected });
        }
        let what = format!("the certificate of {cn}");
        let signed = params(identity, SystemTime::now() + lifetime)?
            .signed_by(&csr.public_key, &self.issuer)
            .map_err(crypto(what))?;
        Ok(signed.pem())
    }

    /// Makes a key and its certificate in one go, for use on this machine.
    ///
    /// # Errors
    /// [`PkiError::Crypto`].
    pub fn issue(&self, identity: &Identity) -> Result<KeyAnd, PkiError> {
        self.issue_until(identity, SystemTime::now() + CERTIFICATE_LIFETIME)
    }

    /// Like [`CertificateAuthority::issue`], with another lifetime from now on.
    ///
    /// # Errors
    /// [`PkiError::Crypto`].
    pub fn issue_for(&self, identity: &Identity, lifetime: Duration) -> Result<KeyAnd, PkiError> {
        self.issue_until(identity, SystemTime::now() + lifetime)
    }

    /// Like [`CertificateAuthority::issue`], valid until another time.
    ///
    /// # Errors
    /// [`PkiError::Crypto`].
    pub fn issue_until(&self, identity: &Identity, until: SystemTime) -> Result<KeyAnd, PkiError> {
        let what = || format!("the certificate of {}", identity.name());
        let key = KeyPair::generate().map_err(crypto(what()))?;
        let signed = params(identity, until)?.signed_by(&key, &self.issuer).map_err(crypto(what()))?;
        Ok(KeyAnd { key_pem: Zeroizing::new(key.serialize_pem()), pem: signed.pem() })
    }
}

/// SHA-256 of a certificate's DER, lower-case hex: what a join token pins.
///
/// # Errors
/// [`PkiError::Malformed`].
pub fn fingerprint(certificate_pem: &str) -> Result<String, PkiError> {
    let (_, pem) =
        x509_parser::pem::parse_x509_pem(certificate_pem.as_bytes()).map_err(|e| malformed("the certificate", e))?;
    Ok(hex(&Sha256::digest(&pem.contents)))
}

/// From when until when a certificate is valid.
///
/// # Errors
/// [`PkiError::Malformed`].
pub fn validity(certificate_pem: &str) -> Result<(SystemTime, SystemTime), PkiError> {
    let (_, pem) =
        x509_parser::pem::parse_x509_pem(certificate_pem.as_bytes()).map_err(|e| malformed("the certificate", e))?;
    let cert = pem.parse_x509().map_err(|e| malformed("the certificate", e))?;
    let at = |t: x509_parser::time::ASN1Time| {
        SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(t.timestamp()).unwrap_or(0))
    };
    Ok((at(cert.validity().not_before), at(cert.validity().not_after)))
}

/// When a certificate was signed, by the signer's clock: its validity begins some time before.
///
/// # Errors
/// [`PkiError::Malformed`].
pub fn signed_at(certificate_pem: &str) -> Result<SystemTime, PkiError> {
    let (from, until) = validity(certificate_pem)?;
    // The whole is the lifetime and the quarter of it at most that `skew` puts before.
    let whole = until.duration_since(from).unwrap_or_default();
    Ok(from + CLOCK_SKEW.min(whole / 5))
}

/// When the holder should renew: at two thirds of the lifetime.
///
/// # Errors
/// [`PkiError::Malformed`].
pub fn renew_at(certificate_pem: &str) -> Result<SystemTime, PkiError> {
    let (from, until) = validity(certificate_pem)?;
    Ok(from + until.duration_since(from).unwrap_or_default() * 2 / 3)
}

#[cfg(test)]
#[path = "pki_tests.rs"]
mod tests;
