//! netd's certificate, renewed by whichever member of the control plane answers.

use std::path::PathBuf;
use std::sync::Arc;

use trellis_proto::client::Connection;
use trellis_proto::identity::Identity;
use trellis_proto::renewal::{self, Files};
use trellis_proto::tls::Credentials;

/// Looks and renews for ever.
pub async fn keep_valid(connection: Connection, credentials: Arc<Credentials>, pki_dir: PathBuf, node: String) {
    let files = Files::new(&pki_dir, "netd");
    renewal::keep_valid(Identity::Netd(node), credentials, files, |csr| renewal::ask(&connection, csr)).await;
}
