//! `events`: what happened, oldest first.

use jiff::Timestamp;
use serde_json::Value;
use trellis_model::Kind;
use trellis_proto::api::EventType;

use crate::cli::Global;
use crate::error::CliError;
use crate::output::{self, Format, columns, table::Table};
use crate::session::{Change, Query, Session, identity};
use crate::target;

pub const EXAMPLES: &str = "Examples:
  trellis events
  trellis events --for pod/web-1
  trellis events -A --types=Warning -w";

/// Arguments of `events`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Only events about TYPE/NAME
    #[arg(long = "for", value_name = "TYPE/NAME")]
    about: Option<String>,
    /// Only these types: Normal, Warning
    #[arg(long, value_delimiter = ',')]
    types: Vec<String>,
    /// All namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Go on with new ones
    #[arg(short, long)]
    watch: bool,
    /// How to print
    #[arg(short, long, value_enum)]
    output: Option<Format>,
    /// No header line
    #[arg(long)]
    no_headers: bool,
}

/// Lists events, then follows them.
pub async fn run(global: &Global, args: Args) -> Result<(), CliError> {
    let session = Session::open(global)?;
    let mut query = Query { namespace: session.namespace_for(Kind::Event, args.all_namespaces), ..Default::default() };
    if let Some(about) = &args.about {
        let (kind, name) = target::one(about, Kind::Pod)?;
        query.fields = format!("involvedObject.kind={},involvedObject.name={name}", kind.name());
    }
    let (mut items, revision) = session.list(Kind::Event, &query).await?;
    items.retain(|e| wanted(e, &args));
    items.sort_by_key(columns::last_seen);
    if let Some(f @ (Format::Json | Format::Yaml)) = args.output {
        return output::print(&output::whole(f, items, false));
    }
    let wide = args.output == Some(Format::Wide);
    let mut headers = columns::headers(Kind::Event, wide);
    if args.all_namespaces {
        headers.insert(0, "NAMESPACE");
    }
    let mut table = Table::new(headers);
    let cells = |e: &Value| {
        let mut row = columns::row(Kind::Event, e, wide, Timestamp::now());
        if args.all_namespaces {
            row.insert(0, identity(e).0.to_owned());
        }
        row
    };
    if items.is_empty() && !args.watch {
        match &query.namespace {
            Some(ns) => eprintln!("No events found in {ns} namespace."),
            None => eprintln!("No events found."),
        }
        return Ok(());
    }
    let rows: Vec<_> = items.iter().map(cells).collect();
    output::print(&table.more(&rows, !args.no_headers))?;
    if !args.watch {
        return Ok(());
    }
    session
        .watch(Kind::Event, &query, revision, |Change { event, object }| {
            if matches!(event, EventType::Added | EventType::Modified) && wanted(&object, &args) {
                output::print(&table.more(&[cells(&object)], false))?;
            }
            Ok(true)
        })
        .await
}

fn wanted(event: &Value, args: &Args) -> bool {
    let type_ = event["type"].as_str().unwrap_or_default();
    args.types.is_empty() || args.types.iter().any(|t| t.eq_ignore_ascii_case(type_))
}
