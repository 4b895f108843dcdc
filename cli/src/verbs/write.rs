//! What `apply` and `create` have in common: their arguments, and how they tell what they did.

use serde_json::Value;
use trellis_model::Kind;

use super::DryRun;
use crate::error::CliError;
use crate::manifest::{Source, Validate};
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
