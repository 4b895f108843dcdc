//! A daemon's certificate: renewed at two thirds of its life, for the same key, so that key and
//! certificate on disk fit each other at every moment. Connections under way keep the old one;
//! every handshake from then on uses the new one.
//!
//! How a request is signed is the caller's: a member holds the CA's key, the others ask a member.

use std::{
    future::Future,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use zeroize::Zeroizing;

use crate::{
    api::RenewCertificateRequest,
    client::Connection,
    identity::Identity,
    node_config::write_private,
    pki::{self, PkiError},
    tls::{Credentials, TlsError},
};

/// The longest sleep: a clock that was set meanwhile is noticed within an hour.
const LOOK_EVERY: Duration = Duration::from_secs(3_600);
/// The shortest: also for certificates that live for seconds, in tests.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// After a failure, unless the certificate ends before that.
const RETRY_EVERY: Duration = Duration::from_secs(300);
/// Tries within what is left of a short life.
const TRIES_LEFT: u32 = 10;

/// Why a certificate was not renewed.
#[derive(Debug, thiserror::Error)]
pub enum RenewalError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The certificate or key on disk is broken.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The new one cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Nobody signed it.
    #[error("{0}")]
    Refused(String),
}

/// The files `<name>.crt` and `<name>.key` of a daemon.
#[derive(Debug, Clone)]
pub struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    /// In the folder `pki`.
    #[must_use]
    pub fn new(pki: &Path, name: &str) -> Self {
        Self { certificate: pki.join(format!("{name}.crt")), key: pki.join(format!("{name}.key")) }
    }

    fn read(path: &Path) -> Result<Zeroizing<String>, RenewalError> {
        let text = std::fs::read_to_string(path);
        text.map(Zeroizing::new).map_err(|source| RenewalError::Io { path: path.to_owned(), source })
    }
}

/// Looks and renews for ever; `sign` gets a request (PEM) and answers a certificate (PEM).
pub async fn keep_valid<F, Fut>(identity: Identity, credentials: Arc<Credentials>, files: Files, sign: F)
where
    F: Fn(String) -> Fut,
    Fut: Future<Output = Result<String, String>>,
{
    loop {
        let wait = match renew_if_due(&identity, &credentials, &files, &sign).await {
            Ok(wait) => wait,
            Err(error) => {
                let wait = retry_after(&files);
                tracing::warn!(%identity, %error, "cannot renew the certificate; trying again in {wait:?}");
                wait
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// Asks the control plane to sign: for daemons that hold no CA key.
pub async fn ask(connection: &Connection, csr: String) -> Result<String, String> {
    let asked = connection.call(|chan| {
        let csr = csr.clone();
        async move {
            let mut client = crate::api::cluster_client::ClusterClient::new(chan);
            client.renew_certificate(RenewCertificateRequest { csr }).await
        }
    });
    asked.await.map(|reply| reply.into_inner().certificate).map_err(|status| status.message().to_owned())
}

/// Answers how long to wait before looking again.
async fn renew_if_due<F, Fut>(
    identity: &Identity,
    credentials: &Credentials,
    files: &Files,
    sign: &F,
) -> Result<Duration, RenewalError>
where
    F: Fn(String) -> Fut,
    Fut: Future<Output = Result<String, String>>,
{
    let due = pki::renew_at(&Files::read(&files.certificate)?)?;
    if let Ok(left) = due.duration_since(SystemTime::now())
        && !left.is_zero()
    {
        return Ok(left.clamp(PAUSE_MIN, LOOK_EVERY));
    }
    let csr = pki::request_with(identity, &Files::read(&files.key)?)?;
    let signed = sign(csr).await.map_err(RenewalError::Refused)?;
    // Nonsense must not replace what still works.
    pki::validity(&signed)?;
    write_private(&files.certificate, signed.as_bytes())
        .map_err(|source| RenewalError::Io { path: files.certificate.clone(), source })?;
    credentials.reload()?;
    tracing::info!(%identity, "renewed the certificate");
    Ok(PAUSE_MIN)
}

/// Often enough to succeed before the certificate ends.
fn retry_after(files: &Files) -> Duration {
    let ends = Files::read(&files.certificate).ok().and_then(|pem| pki::validity(&pem).ok()).map(|(_, until)| until);
    let left = ends.and_then(|at| at.duration_since(SystemTime::now()).ok()).unwrap_or_default();
    (left / TRIES_LEFT).clamp(PAUSE_MIN, RETRY_EVERY)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use crate::pki::CertificateAuthority;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Bed {
        ca: CertificateAuthority,
        dir: tempfile::TempDir,
        identity: Identity,
    }

    impl Bed {
        /// An agent's files with a certificate that lives on for `left`.
        fn new(left: Duration) -> (Self, Arc<Credentials>) {
            let (ca, dir) = (CertificateAuthority::create("c").unwrap(), tempfile::tempdir().unwrap());
            let identity = Identity::Agent("n1".into());
            let made = ca.issue_for(&identity, left).unwrap();
            let write = |name: &str, text: &str| write_private(&dir.path().join(name), text.as_bytes()).unwrap();
            write("ca.crt", ca.certificate_pem());
            write("agent.crt", &made.pem);
            write("agent.key", &made.key_pem);
            let credentials = Credentials::load(dir.path(), "agent").unwrap();
            (Self { ca, dir, identity }, credentials)
        }

        fn files(&self) -> Files {
            Files::new(self.dir.path(), "agent")
        }
    }

    #[tokio::test]
    async fn it_is_renewed_when_due_and_not_before() {
        let (bed, credentials) = Bed::new(Duration::from_secs(8));
        let before = credentials.certificate_der();
        let signed = AtomicU32::new(0);
        let sign = |csr: String| {
            signed.fetch_add(1, Ordering::Relaxed);
            std::future::ready(bed.ca.sign(&csr, &bed.identity, Duration::from_secs(8)).map_err(|e| e.to_string()))
        };
        let wait = renew_if_due(&bed.identity, &credentials, &bed.files(), &sign).await.unwrap();
        assert_eq!((signed.load(Ordering::Relaxed), credentials.certificate_der()), (0, before.clone()), "not due yet");
        assert!(wait > PAUSE_MIN && wait < Duration::from_secs(8), "it looks again when it is due: {wait:?}");
        // Its whole life is 10 s, a quarter of the 8 s lies behind it: due 4 2/3 s from now.
        tokio::time::sleep(wait + PAUSE_MIN).await;
        renew_if_due(&bed.identity, &credentials, &bed.files(), &sign).await.unwrap();
        assert_eq!(signed.load(Ordering::Relaxed), 1);
        assert_ne!(credentials.certificate_der(), before, "handshakes from now on use the new one");
        assert_eq!(
            Credentials::load(bed.dir.path(), "agent").unwrap().certificate_der(),
            credentials.certificate_der()
        );
    }

    #[tokio::test]
    async fn what_is_refused_or_nonsense_leaves_the_old_one_in_place() {
        let (bed, credentials) = Bed::new(Duration::from_millis(1));
        let before = credentials.certificate_der();
        for answer in [Err("no leader".to_owned()), Ok("nonsense".to_owned())] {
            let sign = |_| std::future::ready(answer.clone());
            renew_if_due(&bed.identity, &credentials, &bed.files(), &sign).await.unwrap_err();
            assert_eq!(Credentials::load(bed.dir.path(), "agent").unwrap().certificate_der(), before);
        }
        assert_eq!(retry_after(&bed.files()), PAUSE_MIN, "little is left: soon again");
        let (bed, _) = Bed::new(pki::CERTIFICATE_LIFETIME);
        assert_eq!(retry_after(&bed.files()), RETRY_EVERY);
    }
}
