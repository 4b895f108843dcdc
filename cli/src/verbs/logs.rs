//! `logs`: what a container wrote.

mod resume;

use std::io::Write;
use std::time::{Duration, Instant};

use resume::{Part, Resume};
use serde_json::Value;
use trellis_model::Kind;
use trellis_proto::api::{LogsRequest, pods_client::PodsClient};

use super::{Failures, container, pod_of};
use crate::cli::Global;
use crate::duration;
use crate::error::CliError;
use crate::session::{Query, Session, identity};
use crate::target;

pub const EXAMPLES: &str = "Examples:
  trellis logs web-1
  trellis logs -f deploy/web --tail=20
  trellis logs web-1 -c sidecar --previous
  trellis logs -l app=web --all-containers --since=5m";

/// A followed log that cannot be taken up again within this time ends: elections and a restarted
/// agent take seconds.
const RESUME_WITHIN: Duration = Duration::from_secs(30);
/// Between two tries.
const RESUME_PAUSE: Duration = Duration::from_millis(200);

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
    #[arg(long, value_parser = duration::seconds)]
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
            match done.unwrap_or_else(|e| Err(CliError::local(e))) {
                Ok(()) => {}
                // Whoever read has gone: so do the other streams.
                Err(e @ CliError::Exit(_)) => return Err(e),
                Err(e) => failures.add(&e),
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

/// The containers whose logs are meant.
fn containers(pod: &Value, args: &Args) -> Result<Vec<String>, CliError> {
    match args.all_containers {
        true => Ok([container::names(pod, "initContainers"), container::names(pod, "containers")].concat()),
        false => container::meant(pod, args.container.as_deref()).map(|c| vec![c]),
    }
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

/// Prints a log; followed, it goes on through another member when the one in between dies.
async fn stream(session: &Session, request: LogsRequest, tag: Option<String>) -> Result<(), CliError> {
    let mut printer = Printer {
        // Followed, each line's time is asked for, to find the place again.
        resume: request.follow.then(Resume::default),
        timestamps: request.timestamps,
        tag,
        mid_line: false,
    };
    let mut request = LogsRequest { timestamps: request.timestamps || request.follow, ..request };
    let mut heard = Instant::now();
    loop {
        let broken = match attempt(session, &request, &mut printer, &mut heard).await {
            Err(CliError::Server(s)) if request.follow && trellis_proto::status::retryable(&s) => s,
            ended => return ended,
        };
        if heard.elapsed() > RESUME_WITHIN {
            return Err(CliError::Server(broken));
        }
        if let Some(resume) = printer.resume.as_mut().filter(|r| r.begun()) {
            resume.again();
            (request.tail_lines, request.since_seconds) = (None, None);
        }
        session.conn.next_endpoint();
        tokio::time::sleep(RESUME_PAUSE).await;
    }
}

/// One stream, to its end.
async fn attempt(
    session: &Session,
    request: &LogsRequest,
    printer: &mut Printer,
    heard: &mut Instant,
) -> Result<(), CliError> {
    let mut chunks = session
        .conn
        .call(|c| {
            let request = request.clone();
            async move { PodsClient::new(c).logs(request).await }
        })
        .await?
        .into_inner();
    *heard = Instant::now();
    loop {
        let chunk = chunks.message().await;
        // Silence of a container is no reason to give up: the time runs from the break.
        *heard = Instant::now();
        let Some(chunk) = chunk? else { return Ok(()) };
        printer.print(&chunk.data)?;
    }
}

/// What of the lines that come is printed, and how.
struct Printer {
    resume: Option<Resume>,
    timestamps: bool,
    tag: Option<String>,
    /// The last piece ended before its line did.
    mid_line: bool,
}

impl Printer {
    fn print(&mut self, data: &[u8]) -> Result<(), CliError> {
        let text = self.shown(data);
        let mut out = std::io::stdout().lock();
        out.write_all(&text).and_then(|()| out.flush()).map_err(|_| CliError::Exit(0))
    }

    fn shown(&mut self, data: &[u8]) -> Vec<u8> {
        let mut shown = Vec::with_capacity(data.len());
        let tag = self.tag.as_deref().unwrap_or_default().as_bytes();
        for piece in data.split_inclusive(|b| *b == b'\n') {
            let part = match &mut self.resume {
                None => Some(Part { bytes: piece.to_vec(), begins: !self.mid_line }),
                Some(resume) => resume.take(piece),
            };
            self.mid_line = !piece.ends_with(b"\n");
            let Some(Part { bytes, begins }) = part else { continue };
            if begins {
                shown.extend_from_slice(tag);
            }
            let untimed = self.resume.is_some() && begins && !self.timestamps;
            shown.extend_from_slice(if untimed { resume::text(&bytes) } else { &bytes });
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_log_shows_each_line_once_as_it_was_asked_for() {
        let mut printer =
            Printer { resume: Some(Resume::default()), timestamps: false, tag: Some("[p] ".into()), mid_line: false };
        let (one, two) = ("2026-01-01T00:00:01Z one\n", "2026-01-01T00:00:02Z two\n");
        assert_eq!(printer.shown(one.as_bytes()), b"[p] one\n");
        printer.resume.as_mut().into_iter().for_each(Resume::again);
        assert_eq!(printer.shown(format!("{one}{two}").as_bytes()), b"[p] two\n");
        printer.timestamps = true;
        assert_eq!(printer.shown(b"2026-01-01T00:00:03Z three\n"), b"[p] 2026-01-01T00:00:03Z three\n");
    }
}
