//! `api-resources`: the kinds there are.

use trellis_model::Kind;

use crate::error::CliError;
use crate::output::{self, table};

pub const EXAMPLES: &str = "Examples:
  trellis api-resources
  trellis api-resources --namespaced=false -o name";

/// Arguments of `api-resources`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Only kinds that live in a Namespace, or only those that do not
    #[arg(long)]
    namespaced: Option<bool>,
    /// Print names only
    #[arg(short, long, value_parser = ["name", "wide"])]
    output: Option<String>,
}

/// Prints the kinds that this release serves.
pub fn run(args: &Args) -> Result<(), CliError> {
    let mut kinds: Vec<Kind> =
        Kind::ALL.into_iter().filter(|k| args.namespaced.is_none_or(|n| n == k.namespaced())).collect();
    kinds.sort_by_key(|k| (k.group(), k.plural()));
    if args.output.as_deref() == Some("name") {
        let names: String = kinds.iter().map(|k| format!("{}\n", k.qualified_plural())).collect();
        return output::print(&names);
    }
    let rows: Vec<Vec<String>> = kinds
        .iter()
        .map(|k| {
            vec![
                k.plural().to_owned(),
                k.short_names().join(","),
                k.api_version().to_owned(),
                k.namespaced().to_string(),
                k.name().to_owned(),
            ]
        })
        .collect();
    output::print(&table::render(["NAME", "SHORTNAMES", "APIVERSION", "NAMESPACED", "KIND"], &rows))
}
