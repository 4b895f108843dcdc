//! `version`: of this program and of the cluster.

use serde_json::json;
use trellis_proto::api::{StatusRequest, cluster_client::ClusterClient};

use crate::cli::Global;
use crate::error::CliError;
use crate::output::{self, Format};
use crate::session::Session;
use crate::yaml;

pub const EXAMPLES: &str = "Examples:
  trellis version
  trellis version --client -o json";

/// Arguments of `version`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Only this program's: ask nobody
    #[arg(long)]
    client: bool,
    /// json or yaml
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

/// Prints the versions.
pub async fn run(global: &Global, args: &Args) -> Result<(), CliError> {
    let mut value = json!({"clientVersion": env!("CARGO_PKG_VERSION"), "kubernetesApi": "1.35"});
    let mut missing = None;
    if !args.client {
        match server(global).await {
            Ok(v) => value["serverVersion"] = json!(v),
            Err(e) => missing = Some(e),
        }
    }
    let text = match args.output {
        Some(Format::Json) => output::json_text(&value),
        Some(Format::Yaml) => yaml::write(&value),
        _ => {
            let mut t = format!("Client Version: {} (Kubernetes API 1.35)\n", env!("CARGO_PKG_VERSION"));
            if let Some(v) = value["serverVersion"].as_str() {
                t.push_str(&format!("Server Version: {v}\n"));
            }
            t
        }
    };
    output::print(&text)?;
    missing.map_or(Ok(()), Err)
}

async fn server(global: &Global) -> Result<String, CliError> {
    let session = Session::open(global)?;
    let reply = session.conn.call(|c| async move { ClusterClient::new(c).status(StatusRequest {}).await }).await?;
    Ok(reply.into_inner().version)
}
