//! `image`: images on nodes, without a registry.

mod progress;

use std::io::Read;
use std::sync::atomic::Ordering;

use serde_json::json;
use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use trellis_model::Kind;
use trellis_proto::api::{Image, ImportRequest, ListImagesRequest, images_client::ImagesClient};

use progress::{Progress, Sent};

use super::Failures;
use crate::cli::Global;
use crate::error::CliError;
use crate::output::{self, Format, table};
use crate::session::{Query, Session, identity};
use crate::yaml;

pub const EXAMPLES: &str = "Examples:
  trellis image import app.tar --all-nodes
  docker save app:1 | trellis image import - --node n1
  trellis image list --node n1";

/// Pieces of a file on their way.
const QUEUE: usize = 4;
const CHUNK_BYTES: usize = 1 << 20;
/// Nodes that an archive is sent to at a time.
const AT_ONCE: usize = 4;

/// Tar archives are made of blocks of this size.
const TAR_BLOCK: usize = 512;

/// Arguments of `image`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// Bring an OCI or docker archive (tar; plain, gzip or zstd) onto nodes
    Import {
        /// The archive; - is stdin
        file: String,
        /// A node (repeatable)
        #[arg(long, required_unless_present = "all_nodes")]
        node: Vec<String>,
        /// Every node
        #[arg(long, conflicts_with = "node")]
        all_nodes: bool,
    },
    /// List the images of nodes
    List {
        /// A node (repeatable); all when left out
        #[arg(long)]
        node: Vec<String>,
        /// How to print
        #[arg(short, long, value_enum)]
        output: Option<Format>,
    },
}

/// Imports or lists.
pub async fn run(global: &Global, args: Args) -> Result<(), CliError> {
    let session = Session::open(global)?;
    match args.action {
        Action::Import { file, node, all_nodes } => {
            let nodes = if all_nodes { node_names(&session).await? } else { node };
            import(&session, &file, nodes).await
        }
        Action::List { node, output } => {
            let nodes = if node.is_empty() { node_names(&session).await? } else { node };
            list(&session, nodes, output).await
        }
    }
}

async fn node_names(session: &Session) -> Result<Vec<String>, CliError> {
    let (nodes, _) = session.list(Kind::Node, &Query::default()).await?;
    if nodes.is_empty() {
        return Err(CliError::Local("the cluster has no nodes yet".into()));
    }
    Ok(nodes.iter().map(|n| identity(n).1.to_owned()).collect())
}

async fn import(session: &Session, file: &str, nodes: Vec<String>) -> Result<(), CliError> {
    if file == "-" && nodes.len() > 1 {
        return Err(CliError::Usage("stdin can be read once: name one --node, or give a file".into()));
    }
    let mut size = None;
    if file != "-" {
        // Once, not once a node.
        let mut opened = std::fs::File::open(file).map_err(|e| CliError::Local(format!("{file}: {e}")))?;
        checked(&mut opened, file)?;
        // A pipe has none that means anything.
        size = opened.metadata().ok().filter(std::fs::Metadata::is_file).map(|m| m.len());
    }
    let mut progress = Progress::new(size, nodes.len());
    let mut tasks = JoinSet::new();
    let turns = std::sync::Arc::new(Semaphore::new(AT_ONCE));
    for node in nodes {
        let (session, file, turns, sent) = (session.clone(), file.to_owned(), turns.clone(), progress.sent.clone());
        tasks.spawn(async move {
            // Never closed.
            let _turn = turns.acquire_owned().await.ok();
            let result = import_to(&session, &file, &node, sent).await;
            (node, result)
        });
    }
    let mut failures = Failures::new();
    let mut looks = tokio::time::interval(progress::EVERY);
    loop {
        let done = tokio::select! {
            done = tasks.join_next() => done,
            _ = looks.tick() => {
                progress.show();
                continue;
            }
        };
        progress.clear();
        let Some(done) = done else { break };
        match done.map_err(CliError::local)? {
            (node, Ok(images)) => {
                for i in images {
                    let name = if i.names.is_empty() { i.id.clone() } else { i.names.join(", ") };
                    output::print(&format!("{name} imported to node {node}\n"))?;
                }
            }
            (node, Err(e)) => {
                eprintln!("node {node}:");
                failures.add(&e);
            }
        }
    }
    failures.end()
}

async fn import_to(session: &Session, file: &str, node: &str, sent: Sent) -> Result<Vec<Image>, CliError> {
    // A stream cannot be sent twice: this call finds a member that answers, and whether there is such a node.
    session.get(Kind::Node, "", node).await?;
    let input: Box<dyn Read + Send> = match file {
        "-" => {
            let first = checked(&mut std::io::stdin(), "stdin")?;
            Box::new(std::io::Cursor::new(first).chain(std::io::stdin()))
        }
        path => {
            let opened = std::fs::File::open(path);
            Box::new(opened.map_err(|e| CliError::Local(format!("{path}: {e}")))?)
        }
    };
    let (tx, rx) = mpsc::channel(QUEUE);
    let first = ImportRequest { node: node.to_owned(), ..Default::default() };
    tx.send(first).await.map_err(CliError::local)?;
    let origin = file.to_owned();
    let reader = tokio::task::spawn_blocking(move || {
        pump(input, &tx, &sent).map_err(|e| CliError::Local(format!("{origin}: {e}")))
    });
    let reply = session.conn.for_bulk().images().import(ReceiverStream::new(rx)).await;
    match reply {
        Ok(r) => {
            reader.await.map_err(CliError::local)??;
            Ok(r.into_inner().images)
        }
        Err(s) => Err(s.into()),
    }
}

/// Reads the first block and refuses what cannot be an image's archive: before megabytes are sent to
/// every node, and with a better reason than what a node would make of the bytes.
fn checked(input: &mut impl Read, name: &str) -> Result<Vec<u8>, CliError> {
    let mut first = Vec::with_capacity(TAR_BLOCK);
    input.take(TAR_BLOCK as u64).read_to_end(&mut first).map_err(|e| CliError::Local(format!("{name}: {e}")))?;
    let what = match first.as_slice() {
        [] => "it is empty",
        [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] => return Ok(first),
        block if is_tar(block) => return Ok(first),
        _ => "it is neither a tar archive nor one compressed with gzip or zstd",
    };
    Err(CliError::Local(format!(
        "{name}: no image can be imported from this: {what}; make an archive with `docker save -o app.tar app:1`, or \
         `skopeo copy … oci-archive:app.tar`"
    )))
}

/// Is this a header whose checksum holds? An archive without entries begins with zeros.
fn is_tar(block: &[u8]) -> bool {
    const CHECKSUM: std::ops::Range<usize> = 148..156;
    if block.len() < TAR_BLOCK {
        return false;
    }
    let sum: u32 = block
        .iter()
        .enumerate()
        .map(|(i, b)| if CHECKSUM.contains(&i) { u32::from(b' ') } else { u32::from(*b) })
        .sum();
    let digits = String::from_utf8_lossy(&block[CHECKSUM]);
    u32::from_str_radix(digits.trim_matches(['\0', ' ']), 8) == Ok(sum)
}

fn pump(mut input: Box<dyn Read + Send>, tx: &mpsc::Sender<ImportRequest>, sent: &Sent) -> std::io::Result<()> {
    loop {
        let mut data = vec![0; CHUNK_BYTES];
        let n = input.read(&mut data)?;
        if n == 0 {
            return Ok(());
        }
        data.truncate(n);
        let piece = ImportRequest { node: String::new(), data: data.into() };
        if tx.blocking_send(piece).is_err() {
            // The server has answered already.
            return Ok(());
        }
        sent.fetch_add(n as u64, Ordering::Relaxed);
    }
}

async fn list(session: &Session, nodes: Vec<String>, format: Option<Format>) -> Result<(), CliError> {
    let mut failures = Failures::new();
    let mut images = Vec::new();
    for node in nodes {
        let request = ListImagesRequest { node: node.clone() };
        let reply = session
            .conn
            .call(|c| {
                let request = request.clone();
                async move { ImagesClient::new(c).list(request).await }
            })
            .await;
        match reply {
            Ok(r) => images.extend(r.into_inner().images.into_iter().map(|mut i| {
                if i.node.is_empty() {
                    i.node.clone_from(&node);
                }
                i
            })),
            Err(e) => {
                eprintln!("node {node}:");
                failures.add(&e.into());
            }
        }
    }
    images.sort_by(|a, b| (&a.node, &a.names).cmp(&(&b.node, &b.names)));
    output::print(&shown(&images, format))?;
    failures.end()
}

fn shown(images: &[Image], format: Option<Format>) -> String {
    let values = || {
        let items: Vec<_> = images
            .iter()
            .map(|i| json!({"node": i.node, "names": i.names, "id": i.id, "digest": i.digest, "sizeBytes": i.size_bytes}))
            .collect();
        json!({"images": items})
    };
    match format {
        Some(Format::Json) => output::json_text(&values()),
        Some(Format::Yaml) => yaml::write(&values()),
        Some(Format::Name) => images.iter().flat_map(|i| i.names.iter().map(|n| format!("{n}\n"))).collect(),
        _ => {
            let wide = format == Some(Format::Wide);
            let rows: Vec<Vec<String>> = images
                .iter()
                .map(|i| {
                    let names = if i.names.is_empty() { "<none>".to_owned() } else { i.names.join(",") };
                    let id = if wide { i.id.clone() } else { short(&i.id) };
                    let mut row = vec![i.node.clone(), names, id, size(i.size_bytes)];
                    if wide {
                        row.push(i.digest.clone());
                    }
                    row
                })
                .collect();
            let mut headers = vec!["NODE", "IMAGE", "ID", "SIZE"];
            if wide {
                headers.push("DIGEST");
            }
            table::render(headers, &rows)
        }
    }
}

fn short(id: &str) -> String {
    id.strip_prefix("sha256:").unwrap_or(id).chars().take(12).collect()
}

/// Decimal units with one digit, as container tools show sizes.
fn size(bytes: u64) -> String {
    let mut tenths = u128::from(bytes) * 10;
    for unit in ["B", "kB", "MB", "GB"] {
        if tenths < 10_000 {
            return match unit {
                "B" => format!("{bytes}B"),
                u => format!("{}.{}{u}", tenths / 10, tenths % 10),
            };
        }
        tenths /= 1000;
    }
    format!("{}.{}TB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_archive_is_refused_in_words() {
        let mut header = [0_u8; TAR_BLOCK];
        header[..5].copy_from_slice(b"a.txt");
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum::<u32>() + 8 * 32;
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        assert_eq!(checked(&mut &header[..], "x").ok().as_deref(), Some(&header[..]));
        for compressed in [&[0x1f, 0x8b, 8][..], &[0x28, 0xb5, 0x2f, 0xfd, 4]] {
            assert!(checked(&mut &*compressed, "x").is_ok(), "gzip and zstd are looked into by the node");
        }
        header[0] = b'b';
        for (bytes, why) in [(&header[..], "neither a tar"), (b"", "it is empty"), (b"\xff\xfe hello", "neither a tar")]
        {
            let told = checked(&mut &*bytes, "notes.txt").map_err(|e| e.to_string());
            assert!(told.as_ref().is_err_and(|t| t.contains(why) && t.contains("notes.txt")), "{told:?}");
        }
    }

    #[test]
    fn exact() {
        let image = Image {
            node: "n1".into(),
            names: vec!["docker.io/library/nginx:1.27".into()],
            id: "sha256:0123456789abcdef".into(),
            digest: "sha256:ff".into(),
            size_bytes: 12_345_678,
        };
        assert_eq!(
            shown(std::slice::from_ref(&image), None),
            "NODE   IMAGE                          ID             SIZE\n\
             n1     docker.io/library/nginx:1.27   0123456789ab   12.3MB\n"
        );
        assert_eq!(shown(&[image], Some(Format::Name)), "docker.io/library/nginx:1.27\n");
        assert_eq!((size(999), size(1000), size(2_500_000_000)), ("999B".into(), "1.0kB".into(), "2.5GB".into()));
    }
}
