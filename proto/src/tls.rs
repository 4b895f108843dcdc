//! Mutual TLS of every daemon and client: what to present, whom to believe.
//!
//! One [`Credentials`] a daemon, reloaded in place when its certificate is renewed: running
//! listeners and later connections use the new one at once.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Once, RwLock},
};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        ResolvesClientCert, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use sha2::{Digest, Sha256};

use crate::pki::hex;

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A PEM block is missing or broken.
    #[error("{what}: {reason}")]
    Pem {
        /// Which of CA, certificate, key.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The pieces do not fit together.
    #[error("TLS configuration: {0}")]
    Rustls(#[from] rustls::Error),
    /// No verifier could be built from the CA.
    #[error("the CA certificate cannot verify anybody: {0}")]
    Verifier(String),
}

/// Installs ring as the process' only crypto provider; harmless when called again.
pub fn install_crypto() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Err means that one is installed already, which is as good.
        drop(rustls::crypto::ring::default_provider().install_default());
    });
}

fn certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certs: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| TlsError::Pem { what, reason: e.to_string() })?;
    if certs.is_empty() {
        return Err(TlsError::Pem { what, reason: "holds no CERTIFICATE block".to_owned() });
    }
    Ok(certs)
}

fn roots(ca_pem: &str) -> Result<Arc<RootCertStore>, TlsError> {
    let mut store = RootCertStore::empty();
    for cert in certificates("CA certificate", ca_pem)? {
        store.add(cert)?;
    }
    Ok(Arc::new(store))
}

/// A key pair whose certificate may be replaced while in use, and the CA.
#[derive(Debug)]
pub struct Credentials {
    ca_pem: String,
    current: RwLock<Arc<CertifiedKey>>,
    files: Option<[PathBuf; 2]>,
}

impl Credentials {
    /// From PEM texts.
    pub fn from_pem(ca: &str, certificate: &str, key: &str) -> Result<Arc<Self>, TlsError> {
        install_crypto();
        let current = RwLock::new(Arc::new(certified_key(ca, certificate, key)?));
        Ok(Arc::new(Self { ca_pem: ca.to_owned(), current, files: None }))
    }

    /// From `<pki>/ca.crt`, `<pki>/<name>.crt` and `<pki>/<name>.key`.
    pub fn load(pki: &Path, name: &str) -> Result<Arc<Self>, TlsError> {
        install_crypto();
        let ca_pem = read(&pki.join("ca.crt"))?;
        let files = [pki.join(format!("{name}.crt")), pki.join(format!("{name}.key"))];
        let key = certified_key(&ca_pem, &read(&files[0])?, &read(&files[1])?)?;
        Ok(Arc::new(Self { ca_pem, current: RwLock::new(Arc::new(key)), files: Some(files) }))
    }

    /// Reads the files again; running listeners use what is found from their next handshake on.
    pub fn reload(&self) -> Result<(), TlsError> {
        if let Some([certificate, key]) = &self.files {
            let new = Arc::new(certified_key(&self.ca_pem, &read(certificate)?, &read(key)?)?);
            *self.current.write().unwrap_or_else(std::sync::PoisonError::into_inner) = new;
        }
        Ok(())
    }

    /// The CA's certificate, PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The certificate now in use, DER.
    #[must_use]
    pub fn certificate_der(&self) -> Vec<u8> {
        self.key().cert.first().map(|c| c.to_vec()).unwrap_or_default()
    }

    fn key(&self) -> Arc<CertifiedKey> {
        self.current.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

fn read(path: &Path) -> Result<String, TlsError> {
    std::fs::read_to_string(path).map_err(|source| TlsError::Io { path: path.to_owned(), source })
}

/// The chain sent holds the CA too, so that a joining machine can check the pinned hash.
fn certified_key(ca: &str, certificate: &str, key: &str) -> Result<CertifiedKey, TlsError> {
    let mut chain = certificates("certificate", certificate)?;
    for cert in certificates("CA certificate", ca)? {
        if !chain.contains(&cert) {
            chain.push(cert);
        }
    }
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|e| TlsError::Pem { what: "private key", reason: e.to_string() })?;
    let provider = rustls::crypto::ring::default_provider();
    let signing = provider.key_provider.load_private_key(key)?;
    let certified = CertifiedKey::new(chain, signing);
    certified
        .keys_match()
        .map_err(|_| TlsError::Pem { what: "private key", reason: "does not belong to the certificate".to_owned() })?;
    Ok(certified)
}

#[derive(Debug)]
struct Resolver(Arc<Credentials>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.key())
    }
}

impl ResolvesClientCert for Resolver {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.key())
    }
    fn has_certs(&self) -> bool {
        true
    }
}

/// Must a client show a certificate?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// The handshake fails without one.
    Required,
    /// The handshake succeeds; the service decides (the API port, for `Join` alone).
    Optional,
}

/// A server that presents `credentials` and believes certificates of the cluster's CA.
pub fn server_config(credentials: &Arc<Credentials>, auth: ClientAuth) -> Result<Arc<ServerConfig>, TlsError> {
    let builder = WebPkiClientVerifier::builder(roots(&credentials.ca_pem)?);
    let builder = match auth {
        ClientAuth::Required => builder,
        ClientAuth::Optional => builder.allow_unauthenticated(),
    };
    let verifier = builder.build().map_err(|e| TlsError::Verifier(e.to_string()))?;
    let mut config = ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(Resolver(Arc::clone(credentials))));
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// A client's side of TLS: its configuration and the server name it expects.
#[derive(Clone, Debug)]
pub struct ClientTls {
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) server_name: ServerName<'static>,
}

impl ClientTls {
    /// Presents `credentials`, expects `server_name` signed by the cluster's CA.
    pub fn new(credentials: &Arc<Credentials>, server_name: &str) -> Result<Self, TlsError> {
        let config = ClientConfig::builder()
            .with_root_certificates(roots(&credentials.ca_pem)?)
            .with_client_cert_resolver(Arc::new(Resolver(Arc::clone(credentials))));
        Self::to(server_name, config)
    }

    /// HTTP/2 to whoever has this name.
    fn to(server_name: &str, mut config: ClientConfig) -> Result<Self, TlsError> {
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { config: Arc::new(config), server_name: parse_name(server_name)? })
    }

    /// For a member of the control plane.
    pub fn to_member(credentials: &Arc<Credentials>) -> Result<Self, TlsError> {
        Self::new(credentials, crate::identity::MEMBER_SERVER_NAME)
    }

    /// Presents nothing and believes only a member whose CA has this SHA-256 fingerprint: what
    /// a machine that joins has in its token.
    pub fn pinned(ca_sha256_hex: &str) -> Result<Self, TlsError> {
        install_crypto();
        let verifier = Arc::new(Pinned { fingerprint: ca_sha256_hex.to_ascii_lowercase() });
        let config =
            ClientConfig::builder().dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
        Self::to(crate::identity::MEMBER_SERVER_NAME, config)
    }

    /// Presents nothing and verifies against a known CA: for tests of refusals.
    pub fn without_certificate(ca_pem: &str) -> Result<Self, TlsError> {
        install_crypto();
        let config = ClientConfig::builder().with_root_certificates(roots(ca_pem)?).with_no_client_auth();
        Self::to(crate::identity::MEMBER_SERVER_NAME, config)
    }
}

fn parse_name(name: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(name.to_owned())
        .map_err(|e| TlsError::Pem { what: "server name", reason: format!("{name:?}: {e}") })
}

/// A certificate of the right CA that is not valid now tells of a clock that is wrong: of this machine's,
/// most likely, since members renew theirs in time. `None`: the error is about something else.
pub(crate) fn blamed_on_the_clock(error: &rustls::Error) -> Option<String> {
    use rustls::CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    let which = match error {
        rustls::Error::InvalidCertificate(NotValidYet | NotValidYetContext { .. }) => "is not valid yet",
        rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. }) => "has expired",
        _ => return None,
    };
    Some(format!(
        "by this machine's clock the member's certificate {which}: is the clock right? `date` shows it, \
         `timedatectl set-ntp true` keeps it so ({error})"
    ))
}

/// Believes a chain only if it holds the certificate with the pinned hash and verifies against it.
#[derive(Debug)]
struct Pinned {
    fingerprint: String,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ca = intermediates.iter().find(|c| hex(&Sha256::digest(c)) == self.fingerprint).ok_or_else(|| {
            rustls::Error::General(format!(
                "the server's CA is not the one the join token pins (sha256 {}): wrong cluster, wrong address, or somebody in between",
                self.fingerprint
            ))
        })?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder(Arc::new(roots))
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?;
        verifier
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
            .map_err(|error| blamed_on_the_clock(&error).map_or(error, rustls::Error::General))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
