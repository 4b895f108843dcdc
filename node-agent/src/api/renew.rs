//! The agent's certificate: renewed after two thirds of its life, with a new key.
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use trellis_proto::{
    api::{RenewCertificateRequest, cluster_client::ClusterClient},
    client::Connection,
    node_config::write_private,
    pki::{self, Profile},
    tls::Credentials,
};

/// How often it is looked at: certificates live for months.
const LOOK_EVERY: Duration = Duration::from_secs(3600);
/// After a failure.
const RETRY_EVERY: Duration = Duration::from_secs(300);

/// Looks and renews for ever.
pub fn start(conn: Connection, credentials: Arc<Credentials>, pki_dir: PathBuf, node: String) {
    tokio::spawn(async move {
        loop {
            let wait = match due(&pki_dir) {
                true => match renew(&conn, &credentials, &pki_dir, &node).await {
                    Ok(()) => {
                        tracing::info!("the agent's certificate is renewed");
                        LOOK_EVERY
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot renew the agent's certificate: trying again in 5 minutes");
                        RETRY_EVERY
                    }
                },
                false => LOOK_EVERY,
            };
            tokio::time::sleep(wait).await;
        }
    });
}

fn due(pki_dir: &Path) -> bool {
    let text = std::fs::read_to_string(pki_dir.join("agent.crt"));
    let at = text.ok().and_then(|pem| pki::renew_at(&pem).ok());
    at.is_some_and(|at| at <= SystemTime::now())
}

async fn renew(conn: &Connection, credentials: &Credentials, pki_dir: &Path, node: &str) -> anyhow::Result<()> {
    let request = pki::request(&Profile::Agent(node.to_owned()))?;
    let call = conn.call(|chan| {
        let csr = request.pem.clone();
        async move { ClusterClient::new(chan).renew_certificate(RenewCertificateRequest { csr }).await }
    });
    let reply = call.await?.into_inner();
    // Key first: a crash between the two leaves a pair that does not fit, so keep the old key
    // beside it until the new certificate is in place.
    let (key, certificate) = (pki_dir.join("agent.key"), pki_dir.join("agent.crt"));
    let old = std::fs::read(&key)?;
    write_private(&pki_dir.join("agent.key.old"), &old)?;
    write_private(&key, request.key_pem.as_bytes())?;
    write_private(&certificate, reply.certificate.as_bytes())?;
    credentials.reload()?;
    drop(std::fs::remove_file(pki_dir.join("agent.key.old")));
    Ok(())
}
