//! What `apply` and `create` have in common: their arguments, and how they tell what they did.

use serde_json::Value;
use trellis_model::Kind;

use super::DryRun;
use crate::error::CliError;
use crate::manifest::{Manifest, Source, Validate};
use crate::output::{self, Format};

/// Arguments of verbs that write manifests.
#[derive(clap::Args, Debug)]
pub struct WriteArgs {
    #[command(flatten)]
    pub source: Source,
    /// Unknown fields: refuse, warn, or ignore
    #[arg(long, value_enum, default_value = "strict")]
    pub validate: Validate,
    /// Only let the server check
    #[arg(long, value_enum, default_value = "none")]
    pub dry_run: DryRun,
    /// Print the objects instead of what was done
    #[arg(short, long, value_enum)]
    pub output: Option<Format>,
}

/// Whether the rest need not be tried: nobody answers, and each of them would wait as long to hear it.
pub fn hopeless(e: &CliError, rest: &[Manifest]) -> bool {
    if e.is_unreachable() && !rest.is_empty() {
        eprintln!("error: the other {} objects were not tried", rest.len());
    }
    e.is_unreachable()
}

/// Tells of each object as it is written, or shows all of them at the end.
pub struct Teller<'a> {
    args: &'a WriteArgs,
    whole: Vec<Value>,
}

impl<'a> Teller<'a> {
    /// As the arguments ask for.
    pub fn new(args: &'a WriteArgs) -> Self {
        Teller { args, whole: Vec::new() }
    }

    /// This object was `done` ("created").
    pub fn tell(&mut self, kind: Kind, object: Value, done: &str) -> Result<(), CliError> {
        let name = output::name_of(kind, &object);
        match self.args.output {
            Some(Format::Json | Format::Yaml) => {
                self.whole.push(object);
                Ok(())
            }
            Some(Format::Name) => output::print(&format!("{name}\n")),
            _ => output::print(&format!("{name} {done}{}\n", self.args.dry_run.suffix())),
        }
    }

    /// Prints what was kept.
    pub fn end(self) -> Result<(), CliError> {
        match self.args.output {
            Some(format @ (Format::Json | Format::Yaml)) if !self.whole.is_empty() => {
                let single = self.whole.len() == 1;
                output::print(&output::whole(format, self.whole, single))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Status;

    #[test]
    fn the_rest_is_given_up_only_when_nobody_answers() {
        for (status, want) in
            [(Status::unavailable("x"), true), (Status::not_found("x"), false), (Status::aborted("x"), false)]
        {
            assert_eq!(hopeless(&status.clone().into(), &[]), want, "{status}");
        }
    }
}
