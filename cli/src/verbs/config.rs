//! `config`: contexts.

use serde_json::json;
use trellis_proto::client::{ClusterContext, Contexts};

use crate::cli::Global;
use crate::error::CliError;
use crate::output::{self, Format, table};
use crate::yaml;

pub const EXAMPLES: &str = "Examples:
  trellis config get-contexts
  trellis config current-context
  trellis config use-context lab-x
  trellis config set-context --current --namespace=staging
  trellis config delete-context lab-x
  trellis config view";

/// Arguments of `config`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// List the contexts
    GetContexts {
        /// json, yaml or name
        #[arg(short, long, value_enum)]
        output: Option<Format>,
    },
    /// Print the current context's name
    CurrentContext,
    /// Make a context the current one
    UseContext {
        /// Its name
        name: String,
    },
    /// Change a context's namespace or endpoints
    SetContext {
        /// Its name
        #[arg(required_unless_present = "current")]
        name: Option<String>,
        /// The current one
        #[arg(long, conflicts_with = "name")]
        current: bool,
        /// Replace the endpoints: https://IP:PORT or unix:///PATH (repeatable)
        #[arg(long, value_name = "URL")]
        endpoint: Vec<String>,
    },
    /// Forget a context
    DeleteContext {
        /// Its name
        name: String,
    },
    /// Print the whole file, keys left out
    View {
        /// With keys and certificates
        #[arg(long)]
        raw: bool,
        /// json or yaml
        #[arg(short, long, value_enum)]
        output: Option<Format>,
    },
}

/// Does what was asked.
pub fn run(global: &Global, args: Args) -> Result<(), CliError> {
    let path = global.config.clone().unwrap_or_else(Contexts::default_path);
    match args.action {
        Action::GetContexts { output } => output::print(&listed(&Contexts::load(&path)?, output)),
        Action::CurrentContext => {
            let all = Contexts::load(&path)?;
            if all.current.is_empty() {
                return Err(CliError::Local("current-context is not set".into()));
            }
            output::print(&format!("{}\n", all.current))
        }
        Action::UseContext { name } => {
            Contexts::change(&path, |all| -> Result<(), CliError> {
                all.pick(Some(&name), &path)?;
                all.current.clone_from(&name);
                Ok(())
            })?;
            output::print(&format!("Switched to context {name:?}.\n"))
        }
        Action::SetContext { name, endpoint, .. } => {
            let name = Contexts::change(&path, |all| -> Result<String, CliError> {
                let name = all.pick(name.as_deref(), &path)?.0.to_owned();
                if let Some(c) = all.contexts.get_mut(&name) {
                    if let Some(ns) = &global.namespace {
                        c.namespace.clone_from(ns);
                    }
                    if !endpoint.is_empty() {
                        c.endpoints = endpoint;
                    }
                }
                Ok(name)
            })?;
            output::print(&format!("Context {name:?} modified.\n"))
        }
        Action::DeleteContext { name } => {
            Contexts::change(&path, |all| -> Result<(), CliError> {
                all.pick(Some(&name), &path)?;
                all.contexts.remove(&name);
                if all.current == name {
                    all.current.clear();
                }
                Ok(())
            })?;
            output::print(&format!("deleted context {name} from {}\n", path.display()))
        }
        Action::View { raw, output } => {
            let mut value = serde_json::to_value(Contexts::load(&path)?).map_err(CliError::local)?;
            if !raw {
                for c in value["contexts"].as_object_mut().into_iter().flat_map(|m| m.values_mut()) {
                    c["key"] = json!("REDACTED");
                    c["certificate"] = json!("DATA+OMITTED");
                    c["ca"] = json!("DATA+OMITTED");
                }
            }
            output::print(&match output {
                Some(Format::Json) => output::json_text(&value),
                _ => yaml::write(&value),
            })
        }
    }
}

/// The contexts, without certificates and keys.
fn listed(all: &Contexts, format: Option<Format>) -> String {
    let values = || {
        let one = |(name, c): (&String, &ClusterContext)| json!({"name": name, "current": *name == all.current, "endpoints": c.endpoints, "namespace": c.namespace});
        json!({"contexts": all.contexts.iter().map(one).collect::<Vec<_>>()})
    };
    match format {
        Some(Format::Name) => all.contexts.keys().map(|n| format!("{n}\n")).collect(),
        Some(Format::Json) => output::json_text(&values()),
        Some(Format::Yaml) => yaml::write(&values()),
        Some(Format::Wide) | None => listed_table(all),
    }
}

fn listed_table(all: &Contexts) -> String {
    let rows: Vec<Vec<String>> = all
        .contexts
        .iter()
        .map(|(n, c)| {
            let current = if *n == all.current { "*" } else { "" };
            vec![current.to_owned(), n.clone(), c.endpoints.join(","), c.namespace.clone()]
        })
        .collect();
    table::render(["CURRENT", "NAME", "ENDPOINTS", "NAMESPACE"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_listed_as_asked_for_and_never_with_keys() {
        let context = ClusterContext {
            endpoints: vec!["https://10.0.0.1:6443".into()],
            ca: "CA".into(),
            certificate: "CERTIFICATE".into(),
            key: "KEY".into(),
            namespace: "default".into(),
        };
        let mut all = Contexts { current: "a".into(), ..Contexts::default() };
        all.contexts.insert("a".into(), context);
        let table =
            "CURRENT   NAME   ENDPOINTS               NAMESPACE\n*         a      https://10.0.0.1:6443   default\n";
        assert_eq!(listed(&all, None), table);
        assert_eq!(listed(&all, Some(Format::Name)), "a\n");
        let text =
            "contexts:\n- current: true\n  endpoints:\n  - https://10.0.0.1:6443\n  name: a\n  namespace: default\n";
        assert_eq!(listed(&all, Some(Format::Yaml)), text);
        assert_eq!(yaml::parse(&listed(&all, Some(Format::Json))), yaml::parse(text));
    }
}
