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
    if items.is_empty() && !args.watch && !matches!(args.output, Some(Format::Json | Format::Yaml)) {
        match &query.namespace {
            Some(ns) => eprintln!("No events found in {ns} namespace."),
            None => eprintln!("No events found."),
        }
        return Ok(());
    }
    let mut shower = Shower::new(&args);
    output::print(&shower.first(&items, Timestamp::now()))?;
    if !args.watch {
        return Ok(());
    }
    session
        .watch(Kind::Event, &query, revision, |Change { event, object }| {
            if matches!(event, EventType::Added | EventType::Modified) && wanted(&object, &args) {
                output::print(&shower.more(std::slice::from_ref(&object), false, Timestamp::now()))?;
            }
            Ok(true)
        })
        .await
}

/// Shows events as they were asked for.
struct Shower<'a> {
    args: &'a Args,
    table: Table,
}

impl<'a> Shower<'a> {
    fn new(args: &'a Args) -> Self {
        let mut headers = columns::headers(Kind::Event, args.output == Some(Format::Wide));
        if args.all_namespaces {
            headers.insert(0, "NAMESPACE");
        }
        Shower { args, table: Table::new(headers) }
    }

    /// What there is: one List, unless more may follow.
    fn first(&mut self, events: &[Value], now: Timestamp) -> String {
        match self.args.output {
            Some(f @ (Format::Json | Format::Yaml)) if !self.args.watch => output::whole(f, events.to_vec(), false),
            _ => self.more(events, !self.args.no_headers, now),
        }
    }

    fn more(&mut self, events: &[Value], header: bool, now: Timestamp) -> String {
        let row = |e: &Value| {
            let mut row = columns::row(Kind::Event, e, self.args.output == Some(Format::Wide), now);
            if self.args.all_namespaces {
                row.insert(0, identity(e).0.to_owned());
            }
            row
        };
        let text = output::apart(self.args.output, Kind::Event, events);
        text.unwrap_or_else(|| self.table.more(&events.iter().map(row).collect::<Vec<_>>(), header))
    }
}

fn wanted(event: &Value, args: &Args) -> bool {
    let type_ = event["type"].as_str().unwrap_or_default();
    args.types.is_empty() || args.types.iter().any(|t| t.eq_ignore_ascii_case(type_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use serde_json::json;

    #[derive(Parser)]
    struct P {
        #[command(flatten)]
        a: Args,
    }

    #[test]
    fn events_are_shown_as_asked_for() {
        let events = [json!({"metadata": {"name": "a"}}), json!({"metadata": {"name": "b"}})];
        let first = |flags: &[&str]| {
            let args = P::parse_from([&["x"], flags].concat()).a;
            Shower::new(&args).first(&events, Timestamp::UNIX_EPOCH)
        };
        assert_eq!(first(&["-o", "name"]), "event/a\nevent/b\n");
        assert_eq!(first(&["-o", "name", "-w"]), "event/a\nevent/b\n");
        assert!(first(&["-o", "json"]).contains("\"kind\": \"List\""));
        let watched = first(&["-o", "json", "-w"]);
        assert_eq!(crate::yaml::parse(&watched), Ok(events.to_vec()), "one after the other: more may follow");
        assert_eq!(first(&["-w"]).lines().count(), 3, "a header and two rows");
    }
}
