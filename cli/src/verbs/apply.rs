//! `apply`: make objects as manifests say.

use trellis_proto::api::ApplyOutcome;

use super::{DryRun, Failures};
use crate::cli::Global;
use crate::error::CliError;
use crate::manifest::{self, Loaded, Source, Validate};
use crate::output::{self, Format};
use crate::session::Session;

pub const EXAMPLES: &str = "Examples:
  trellis apply -f web.yaml            create what is missing, change what differs
  trellis apply -f manifests/ -R       every manifest of a folder and its folders
  cat web.yaml | trellis apply -f -    from stdin";

/// Arguments of `apply`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    /// Unknown fields: refuse, warn, or ignore
    #[arg(long, value_enum, default_value = "strict")]
    validate: Validate,
    /// Only let the server check
    #[arg(long, value_enum, default_value = "none")]
    dry_run: DryRun,
    /// Print the objects instead of what was done
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

/// Applies every manifest; goes on after an error.
pub async fn run(global: &Global, args: Args) -> Result<(), CliError> {
    let session = Session::open(global)?;
    let Loaded { mut manifests, unusable } = manifest::load(&args.source, &session, args.validate)?;
    manifest::in_order(&mut manifests);
    let mut failures = Failures::of(&unusable);
    let mut applied = Vec::new();
    for m in &manifests {
        match session.apply(m.kind, &m.object, args.dry_run.is_on()).await {
            Ok((object, outcome)) => {
                let what = match outcome {
                    ApplyOutcome::Created => "created",
                    ApplyOutcome::Unchanged => "unchanged",
                    _ => "configured",
                };
                let name = output::name_of(m.kind, &object);
                match args.output {
                    None => output::print(&format!("{name} {what}{}\n", args.dry_run.suffix()))?,
                    Some(Format::Name) => output::print(&format!("{name}\n"))?,
                    Some(_) => applied.push(object),
                }
            }
            Err(e) => {
                if manifests.len() > 1 {
                    eprintln!("{}:", m.origin);
                }
                failures.add(&e);
            }
        }
    }
    if let Some(f @ (Format::Json | Format::Yaml)) = args.output
        && !applied.is_empty()
    {
        let single = applied.len() == 1;
        output::print(&output::whole(f, applied, single))?;
    }
    failures.end()
}
