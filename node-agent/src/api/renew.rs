//! The agent's certificate, renewed by whichever member of the control plane answers.
use std::{path::PathBuf, sync::Arc};
use trellis_proto::{
    client::Connection,
    identity::Identity,
    renewal::{self, Files},
    tls::Credentials,
};

/// Looks and renews for ever.
pub fn start(conn: Connection, credentials: Arc<Credentials>, pki_dir: PathBuf, node: String) {
    tokio::spawn(async move {
        let files = Files::new(&pki_dir, "agent");
        renewal::keep_valid(Identity::Agent(node), credentials, files, |csr| renewal::ask(&conn, csr)).await;
    });
}
