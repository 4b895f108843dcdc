//! `get`: lists, whole objects, and changes as they come.

use std::cell::RefCell;

use jiff::Timestamp;
use serde_json::Value;
use trellis_model::Kind;
use trellis_proto::api::EventType;

use super::choice::Choice;
use crate::cli::Global;
use crate::error::CliError;
use crate::manifest::{self, Loaded, Source, Validate};
use crate::output::{self, Format, columns, table::Table};
use crate::session::{Change, Query, Session, identity};
use crate::target::Target;

pub const EXAMPLES: &str = "Examples:
  trellis get pods                     Pods of the namespace
  trellis get po -A -o wide            of all namespaces, with address and node
  trellis get deploy,rs -l app=web
  trellis get pod web-1 -o yaml        one, whole
  trellis get pods --field-selector spec.nodeName=n1 -w";

/// Arguments of `get`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// TYPE[,TYPE] [NAME…] or TYPE/NAME…
    #[arg(value_name = "RESOURCE")]
    resources: Vec<String>,
    #[command(flatten)]
    source: Source,
    /// All namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Labels, as in app=web,tier in (a,b),!canary
    #[arg(short = 'l', long, default_value = "", hide_default_value = true)]
    selector: String,
    /// Fields, as in status.phase!=Running
    #[arg(long, default_value = "", hide_default_value = true)]
    field_selector: String,
    /// Go on with every change
    #[arg(short, long)]
    watch: bool,
    /// Only changes, not what is there
    #[arg(long)]
    watch_only: bool,
    /// How to print
    #[arg(short, long, value_enum)]
    output: Option<Format>,
    /// No header line
    #[arg(long)]
    no_headers: bool,
    /// Labels as the last column
    #[arg(long)]
    show_labels: bool,
    /// A missing object is no error
    #[arg(long)]
    ignore_not_found: bool,
}

/// Lists, prints or watches.
pub async fn run(global: &Global, args: Args) -> Result<(), CliError> {
    let session = Session::open(global)?;
    let (targets, unusable) = targets(&args, &session)?;
    let mut failures = super::Failures::of(&unusable);
    if args.watch || args.watch_only {
        return watch(&session, &args, &targets).await;
    }
    let mut found: Vec<(Kind, Value)> = Vec::new();
    for t in &targets {
        match fetch(&session, &args, t).await {
            Ok(items) => found.extend(items.into_iter().map(|o| (t.kind, o))),
            Err(e) if args.ignore_not_found && e.is_not_found() => {}
            Err(e) if t.name.is_some() => failures.add(&e),
            Err(e) => return Err(e),
        }
    }
    let single = targets.len() == 1 && targets[0].name.is_some();
    match args.output {
        Some(f @ (Format::Json | Format::Yaml)) => {
            if !(single && found.is_empty()) {
                let items = found.into_iter().map(|(_, o)| o).collect();
                output::print(&output::whole(f, items, single))?;
            }
        }
        Some(Format::Name) => {
            for (k, o) in &found {
                output::print(&format!("{}\n", output::name_of(*k, o)))?;
            }
        }
        _ => {
            if found.is_empty() && !single && failures.count == 0 {
                nothing(&session, &args, &targets);
            }
            output::print(&tables(&args, &found, targets_kinds(&targets) > 1))?;
        }
    }
    failures.end()
}

/// What is asked for, and why some of the manifests ask for nothing.
fn targets(args: &Args, session: &Session) -> Result<(Vec<Target>, Vec<CliError>), CliError> {
    let choice = Choice { labels: &args.selector, fields: &args.field_selector, all: false, type_alone: true };
    if args.source.filename.is_empty() {
        let targets = choice.targets(&args.resources)?;
        let named = targets.iter().any(|t| t.name.is_some());
        if named && args.all_namespaces {
            return Err(CliError::Usage("a resource cannot be retrieved by name across all namespaces".into()));
        }
        return Ok((targets, Vec::new()));
    }
    choice.of_manifests(&args.resources)?;
    let Loaded { manifests, unusable } = manifest::load(&args.source, session, Validate::Ignore)?;
    let target = |m: &manifest::Manifest| {
        let (namespace, name) = identity(&m.object);
        Target { kind: m.kind, name: Some(name.to_owned()), namespace: Some(namespace.to_owned()) }
    };
    Ok((manifests.iter().map(target).collect(), unusable))
}

fn targets_kinds(targets: &[Target]) -> usize {
    let mut kinds: Vec<Kind> = targets.iter().map(|t| t.kind).collect();
    kinds.sort();
    kinds.dedup();
    kinds.len()
}

fn query(session: &Session, args: &Args, t: &Target) -> Query {
    Query {
        namespace: t.namespace.clone().or_else(|| session.namespace_for(t.kind, args.all_namespaces)),
        name: t.name.clone(),
        labels: args.selector.clone(),
        fields: args.field_selector.clone(),
    }
}

fn namespace_of<'a>(session: &'a Session, t: &'a Target) -> &'a str {
    t.namespace.as_deref().unwrap_or(&session.namespace)
}

async fn fetch(session: &Session, args: &Args, t: &Target) -> Result<Vec<Value>, CliError> {
    match &t.name {
        Some(name) => Ok(vec![session.get(t.kind, namespace_of(session, t), name).await?]),
        None => {
            let (mut items, _) = session.list(t.kind, &query(session, args, t)).await?;
            if t.kind == Kind::Event {
                items.sort_by_key(columns::last_seen);
            }
            Ok(items)
        }
    }
}

fn nothing(session: &Session, args: &Args, targets: &[Target]) {
    let namespaced = targets.iter().any(|t| t.kind.namespaced());
    if namespaced && !args.all_namespaces {
        eprintln!("No resources found in {} namespace.", session.namespace);
    } else {
        eprintln!("No resources found");
    }
}

fn header(args: &Args, kind: Kind) -> Vec<String> {
    let wide = args.output == Some(Format::Wide);
    let mut out: Vec<String> = columns::headers(kind, wide).into_iter().map(str::to_owned).collect();
    if args.all_namespaces && kind.namespaced() {
        out.insert(0, "NAMESPACE".to_owned());
    }
    if args.show_labels {
        out.push("LABELS".to_owned());
    }
    out
}

fn cells(args: &Args, kind: Kind, o: &Value, prefixed: bool) -> Vec<String> {
    let wide = args.output == Some(Format::Wide);
    let mut out = columns::row(kind, o, wide, Timestamp::now());
    if prefixed && kind != Kind::Event {
        out[0] = output::name_of(kind, o);
    }
    if args.all_namespaces && kind.namespaced() {
        out.insert(0, identity(o).0.to_owned());
    }
    if args.show_labels {
        out.push(columns::labels(o));
    }
    out
}

/// One table per kind, with an empty line between them.
fn tables(args: &Args, found: &[(Kind, Value)], prefixed: bool) -> String {
    let mut out = String::new();
    let mut done: Vec<Kind> = Vec::new();
    for (kind, _) in found {
        if done.contains(kind) {
            continue;
        }
        done.push(*kind);
        let same = found.iter().filter(|(k, _)| k == kind);
        let rows: Vec<_> = same.map(|(k, o)| cells(args, *k, o, prefixed)).collect();
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(&Table::new(header(args, *kind)).render(&rows, !args.no_headers));
    }
    out
}

async fn watch(session: &Session, args: &Args, targets: &[Target]) -> Result<(), CliError> {
    let [t] = targets else {
        return Err(CliError::Usage("you may only specify a single resource type with --watch".into()));
    };
    let mut query = query(session, args, t);
    if let Some(name) = &t.name {
        query.fields = format!("metadata.name={name}");
    }
    let (items, revision) = session.list(t.kind, &query).await?;
    if t.name.is_some() && items.is_empty() {
        // Says NotFound in the server's words.
        session.get(t.kind, namespace_of(session, t), t.name.as_deref().unwrap_or_default()).await?;
    }
    let table = RefCell::new(Table::new(header(args, t.kind)));
    let show = |rows: &[Value], first: bool| -> Result<(), CliError> {
        let text = match output::apart(args.output, t.kind, rows) {
            Some(text) => text,
            None => {
                let rows: Vec<_> = rows.iter().map(|o| cells(args, t.kind, o, false)).collect();
                table.borrow_mut().more(&rows, first && !args.no_headers)
            }
        };
        output::print(&text)
    };
    if args.watch_only {
        show(&[], true)?;
    } else {
        show(&items, true)?;
    }
    session
        .watch(t.kind, &query, revision, |Change { event, object }| {
            if event != EventType::Bookmark && object.is_object() {
                show(std::slice::from_ref(&object), false)?;
            }
            Ok(true)
        })
        .await
}
