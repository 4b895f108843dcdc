//! `apply`: make objects as manifests say.

use trellis_proto::api::ApplyOutcome;

use super::Failures;
use super::write::{self, Teller};
use crate::cli::Global;
use crate::error::CliError;
use crate::manifest::{self, Loaded, Validate};
use crate::session::Session;

pub const EXAMPLES: &str = "Examples:
  trellis apply -f web.yaml            create what is missing, change what differs
  trellis apply -f manifests/ -R       every manifest of a folder and its folders
  cat web.yaml | trellis apply -f -    from stdin";

/// Arguments of `apply`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    write: write::WriteArgs,
}

/// Applies every manifest; goes on after an error, unless nobody answers.
pub async fn run(global: &Global, args: Args) -> Result<(), CliError> {
    let args = args.write;
    let mut session = Session::open(global)?;
    session.ignore_unknown = args.validate == Validate::Ignore;
    let Loaded { mut manifests, unusable } = manifest::load(&args.source, &session, args.validate)?;
    manifest::in_order(&mut manifests);
    let mut failures = Failures::of(&unusable);
    let mut teller = Teller::new(&args);
    for (i, m) in manifests.iter().enumerate() {
        match session.apply(m.kind, &m.object, args.dry_run.is_on()).await {
            Ok((object, outcome)) => {
                let done = match outcome {
                    ApplyOutcome::Created => "created",
                    ApplyOutcome::Unchanged => "unchanged",
                    _ => "configured",
                };
                teller.tell(m.kind, object, done)?;
            }
            Err(e) => {
                failures.add_of(&e, (manifests.len() > 1).then_some(m.origin.as_str()));
                if write::hopeless(&e, &manifests[i + 1..]) {
                    break;
                }
            }
        }
    }
    teller.end()?;
    failures.end()
}
