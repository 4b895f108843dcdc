//! netd's certificate: renewed after two thirds of its life, for the same key, so that key and
//! certificate on disk fit each other at every moment.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use trellis_proto::api::RenewCertificateRequest;
use trellis_proto::api::cluster_client::ClusterClient;
use trellis_proto::client::Connection;
use trellis_proto::node_config::write_private;
use trellis_proto::pki::{self, Profile};
use trellis_proto::tls::Credentials;

/// How often it is looked at: certificates live for months.
const LOOK_EVERY: Duration = Duration::from_secs(3600);
/// After a failure.
const RETRY_EVERY: Duration = Duration::from_secs(300);

/// Looks and renews for ever.
pub async fn keep_valid(connection: Connection, credentials: Arc<Credentials>, pki_dir: PathBuf, node: String) {
    loop {
        let wait = match renew_if_due(&connection, &credentials, &pki_dir, &node).await {
            Ok(renewed) => {
                if renewed {
                    tracing::info!("netd's certificate is renewed");
                }
                LOOK_EVERY
            }
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "cannot renew netd's certificate; trying again in 5 minutes"
                );
                RETRY_EVERY
            }
        };
        tokio::time::sleep(wait).await;
    }
}

async fn renew_if_due(
    connection: &Connection,
    credentials: &Credentials,
    pki_dir: &Path,
    node: &str,
) -> anyhow::Result<bool> {
    let (certificate, key) = (pki_dir.join("netd.crt"), pki_dir.join("netd.key"));
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| path.display().to_string());
    if pki::renew_at(&read(&certificate)?)? > SystemTime::now() {
        return Ok(false);
    }
    let csr = pki::request_with(&Profile::Netd(node.to_owned()), &read(&key)?)?;
    let reply = connection
        .call(|chan| {
            let csr = csr.clone();
            async move { ClusterClient::new(chan).renew_certificate(RenewCertificateRequest { csr }).await }
        })
        .await?
        .into_inner();
    write_private(&certificate, reply.certificate.as_bytes()).with_context(|| certificate.display().to_string())?;
    credentials.reload()?;
    Ok(true)
}
