//! `logs`: what a container wrote.

use std::io::Write;

use serde_json::Value;
use trellis_model::Kind;
use trellis_proto::api::{LogsRequest, pods_client::PodsClient};

use super::{Failures, pod_of};
use crate::cli::Global;
use crate::error::CliError;
use crate::output;
use crate::session::{Query, Session, identity};
use crate::target;

pub const EXAMPLES: &str = "Examples:
  trellis logs web-1
  trellis logs -f deploy/web --tail=20
  trellis logs web-1 -c sidecar --previous
  trellis logs -l app=web --all-containers --since=5m";

/// Arguments of `logs`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// POD or TYPE/NAME
    #[arg(value_name = "POD|TYPE/NAME", required_unless_present = "selector")]
    target: Option<String>,
    /// Pods with these labels
    #[arg(short = 'l', long, conflicts_with = "target")]
    selector: Option<String>,
    /// The container; not needed when there is one
    #[arg(short, long)]
    container: Option<String>,
    /// All containers of the Pod
    #[arg(long, conflicts_with = "container")]
    all_containers: bool,
    /// Go on with what is written
    #[arg(short, long)]
    follow: bool,
    /// The container's run before this one
    #[arg(short, long)]
    previous: bool,
    /// Only the last lines
    #[arg(long, value_name = "LINES", allow_negative_numbers = true, default_value = "-1")]
    tail: i64,
    /// Only what is newer, as in 5m
    #[arg(long, value_parser = output::columns::seconds)]
    since: Option<u64>,
    /// The time before each line
    #[arg(long)]
    timestamps: bool,
    /// Pod and container before each line
    #[arg(long)]
    prefix: bool,
}

/// Prints the logs of each container meant.
pub async fn run(global: &Global, args: Args) -> Result<(), CliError> {
    let session = Session::open(global)?;
    let pods = match (&args.target, &args.selector) {
        (Some(t), _) => {
            let (kind, name) = target::one(t, Kind::Pod)?;
            vec![pod_of(&session, kind, &name).await?]
        }
        (None, selector) => {
            let query = Query {
                namespace: session.namespace_for(Kind::Pod, false),
                labels: selector.clone().unwrap_or_default(),
                ..Default::default()
            };
            session.list(Kind::Pod, &query).await?.0
        }
    };
    let mut sources = Vec::new();
    for pod in &pods {
        for container in containers(pod, &args)? {
            sources.push((pod, container));
        }
    }
    if sources.is_empty() {
        eprintln!("No resources found in {} namespace.", session.namespace);
    }
    let prefix = args.prefix;
    let mut failures = Failures::new();
    // Followed together; one after the other otherwise, in order.
    if args.follow && sources.len() > 1 {
        let mut tasks = tokio::task::JoinSet::new();
        for (pod, container) in sources {
            let session = session.clone();
            let (request, tag) = request(pod, &container, &args);
            tasks.spawn(async move { stream(&session, request, prefix.then_some(tag)).await });
        }
        while let Some(done) = tasks.join_next().await {
            if let Err(e) = done.unwrap_or_else(|e| Err(CliError::local(e))) {
                failures.add(&e);
            }
        }
        return failures.end();
    }
    for (pod, container) in sources {
        let (request, tag) = request(pod, &container, &args);
        if let Err(e) = stream(&session, request, prefix.then_some(tag)).await {
            if matches!(e, CliError::Exit(_)) {
                return Err(e);
            }
            failures.add(&e);
        }
    }
    failures.end()
}

fn names(pod: &Value, list: &str) -> Vec<String> {
    let items = pod["spec"][list].as_array();
    items.into_iter().flatten().filter_map(|c| c["name"].as_str().map(str::to_owned)).collect()
}

/// The containers whose logs are meant.
fn containers(pod: &Value, args: &Args) -> Result<Vec<String>, CliError> {
    let (own, init) = (names(pod, "containers"), names(pod, "initContainers"));
    let name = identity(pod).1;
    if let Some(c) = &args.container {
        if own.contains(c) || init.contains(c) {
            return Ok(vec![c.clone()]);
        }
        return Err(CliError::Usage(format!(
            "container {c:?} is not in pod {name:?}, which has: {}",
            [init, own].concat().join(", ")
        )));
    }
    if args.all_containers {
        return Ok([init, own].concat());
    }
    if own.len() > 1 {
        eprintln!(
            "Defaulted container {:?} out of: {}{}",
            own[0],
            own.join(", "),
            init.iter().map(|i| format!(", {i} (init)")).collect::<String>()
        );
    }
    Ok(own.into_iter().take(1).collect())
}

fn request(pod: &Value, container: &str, args: &Args) -> (LogsRequest, String) {
    let (namespace, name) = identity(pod);
    let request = LogsRequest {
        namespace: namespace.to_owned(),
        pod: name.to_owned(),
        container: container.to_owned(),
        follow: args.follow,
        previous: args.previous,
        timestamps: args.timestamps,
        tail_lines: u32::try_from(args.tail).ok(),
        since_seconds: args.since.and_then(|s| i64::try_from(s).ok()),
    };
    (request, format!("[pod/{name}/{container}] "))
}

async fn stream(session: &Session, request: LogsRequest, tag: Option<String>) -> Result<(), CliError> {
    let mut chunks = session
        .conn
        .call(|c| {
            let request = request.clone();
            async move { PodsClient::new(c).logs(request).await }
        })
        .await?
        .into_inner();
    while let Some(chunk) = chunks.message().await? {
        let data = match &tag {
            None => chunk.data.to_vec(),
            Some(tag) => {
                chunk.data.split_inclusive(|b| *b == b'\n').flat_map(|line| [tag.as_bytes(), line].concat()).collect()
            }
        };
        let mut out = std::io::stdout().lock();
        if out.write_all(&data).and_then(|()| out.flush()).is_err() {
            return Err(CliError::Exit(0));
        }
    }
    Ok(())
}
