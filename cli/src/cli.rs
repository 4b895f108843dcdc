//! The arguments: one sub-command per verb.

use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand};

use crate::error::CliError;
use crate::verbs::{
    api_resources, apply, cluster, completion, config, cordon, create, delete, describe, drain, events, exec, get,
    image, label, logs, node, port_forward, rollout, scale, taint, version, wait,
};

/// Talks to a Trellis cluster: Pods, Deployments and what belongs to them, in Kubernetes' words.
#[derive(Parser, Debug)]
#[command(
    name = "trellis",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done; 1 refused or failed; 2 wrong usage; 3 not found; 4 conflict;\n5 control plane not reachable; 124 timed out; exec passes on its command's."
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options of every verb.
#[derive(clap::Args, Debug, Clone, Default)]
pub struct Global {
    /// Context to use instead of the current one
    #[arg(long, global = true, env = "TRELLIS_CONTEXT", value_name = "NAME")]
    pub context: Option<String>,
    /// File with the contexts [default: $TRELLIS_CONFIG or ~/.config/trellis/config.json]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Namespace instead of the context's
    #[arg(short, long, global = true, value_name = "NAME")]
    pub namespace: Option<String>,
}

/// The verbs.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Make objects as files say: create them, or merge changes into them
    #[command(after_help = apply::EXAMPLES)]
    Apply(apply::Args),
    /// Create objects from files, or a Namespace, ConfigMap or Secret by name
    #[command(after_help = create::EXAMPLES)]
    Create(create::Args),
    /// List objects, or print some whole
    #[command(after_help = get::EXAMPLES)]
    Get(get::Args),
    /// Show one object with its events
    #[command(after_help = describe::EXAMPLES)]
    Describe(describe::Args),
    /// Delete objects
    #[command(after_help = delete::EXAMPLES)]
    Delete(delete::Args),
    /// Print what a container wrote
    #[command(after_help = logs::EXAMPLES)]
    Logs(logs::Args),
    /// Run a command in a container
    #[command(after_help = exec::EXAMPLES)]
    Exec(exec::Args),
    /// Carry local connections to a Pod's port
    #[command(name = "port-forward", after_help = port_forward::EXAMPLES)]
    PortForward(port_forward::Args),
    /// Set the number of replicas
    #[command(after_help = scale::EXAMPLES)]
    Scale(scale::Args),
    /// Watch, repeat or list the rollouts of a Deployment
    #[command(after_help = rollout::EXAMPLES)]
    Rollout(rollout::Args),
    /// Let no new Pods onto a node
    #[command(after_help = cordon::EXAMPLES)]
    Cordon(cordon::Args),
    /// Let new Pods onto a node again
    #[command(after_help = cordon::UNCORDON_EXAMPLES)]
    Uncordon(cordon::Args),
    /// Cordon a node and move its Pods elsewhere
    #[command(after_help = drain::EXAMPLES)]
    Drain(drain::Args),
    /// Add or remove taints of nodes
    #[command(after_help = taint::EXAMPLES)]
    Taint(taint::Args),
    /// Set or remove labels
    #[command(after_help = label::EXAMPLES)]
    Label(label::Args),
    /// Set or remove annotations
    #[command(after_help = label::ANNOTATE_EXAMPLES)]
    Annotate(label::Args),
    /// Wait until objects are as wanted
    #[command(after_help = wait::EXAMPLES)]
    Wait(wait::Args),
    /// List events, oldest first
    #[command(after_help = events::EXAMPLES)]
    Events(events::Args),
    /// List the kinds of objects
    #[command(name = "api-resources", after_help = api_resources::EXAMPLES)]
    ApiResources(api_resources::Args),
    /// Make, join and change the cluster itself
    #[command(after_help = cluster::EXAMPLES)]
    Cluster(cluster::Args),
    /// This machine as a node: check it, reset it
    #[command(after_help = node::EXAMPLES)]
    Node(node::Args),
    /// Import and list images on nodes
    #[command(after_help = image::EXAMPLES)]
    Image(image::Args),
    /// Look at and change contexts
    #[command(after_help = config::EXAMPLES)]
    Config(config::Args),
    /// Print a completion script
    #[command(after_help = completion::EXAMPLES)]
    Completion(completion::Args),
    /// Print versions
    #[command(after_help = version::EXAMPLES)]
    Version(version::Args),
}

/// The arguments, with the examples of a verb repeated below its own sub-commands.
pub fn command() -> clap::Command {
    let verbs = Cli::command();
    let names: Vec<String> = verbs.get_subcommands().map(|v| v.get_name().to_owned()).collect();
    names.into_iter().fold(verbs, |all, name| {
        all.mut_subcommand(&name, |verb| {
            let examples = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            with_examples(verb, &format!("trellis {name}"), &examples)
        })
    })
}

fn with_examples(command: clap::Command, path: &str, examples: &str) -> clap::Command {
    let names: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    names.into_iter().fold(command, |all, name| {
        all.mut_subcommand(&name, |sub| {
            let path = format!("{path} {name}");
            let own: Vec<&str> = examples.lines().filter(|l| l.contains(&path)).collect();
            let sub = sub.after_help(format!("Examples:\n{}", own.join("\n")));
            with_examples(sub, &path, examples)
        })
    })
}

impl Cli {
    /// Runs the verb.
    pub async fn run(self) -> Result<(), CliError> {
        let g = &self.global;
        match self.verb {
            Verb::Apply(a) => apply::run(g, a).await,
            Verb::Create(a) => create::run(g, a).await,
            Verb::Get(a) => get::run(g, a).await,
            Verb::Describe(a) => describe::run(g, a).await,
            Verb::Delete(a) => delete::run(g, a).await,
            Verb::Logs(a) => logs::run(g, a).await,
            Verb::Exec(a) => exec::run(g, a).await,
            Verb::PortForward(a) => port_forward::run(g, a).await,
            Verb::Scale(a) => scale::run(g, a).await,
            Verb::Rollout(a) => rollout::run(g, a).await,
            Verb::Cordon(a) => cordon::run(g, a, true).await,
            Verb::Uncordon(a) => cordon::run(g, a, false).await,
            Verb::Drain(a) => drain::run(g, a).await,
            Verb::Taint(a) => taint::run(g, a).await,
            Verb::Label(a) => label::run(g, a, label::Field::Labels).await,
            Verb::Annotate(a) => label::run(g, a, label::Field::Annotations).await,
            Verb::Wait(a) => wait::run(g, a).await,
            Verb::Events(a) => events::run(g, a).await,
            Verb::ApiResources(a) => api_resources::run(&a),
            Verb::Cluster(a) => cluster::run(g, a).await,
            Verb::Node(a) => node::run(a),
            Verb::Image(a) => image::run(g, a).await,
            Verb::Config(a) => config::run(g, a),
            Verb::Completion(a) => completion::run(&a),
            Verb::Version(a) => version::run(g, &a).await,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn the_arguments_are_consistent_and_every_verb_has_an_example() {
        fn check(command: &clap::Command, path: &str) {
            for verb in command.get_subcommands() {
                let path = format!("{path} {}", verb.get_name());
                let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains(&path) || help.contains("trellis completion"), "{path} has no example: {help}");
                check(verb, &path);
            }
        }
        let command = command();
        command.clone().debug_assert();
        check(&command, "trellis");
    }

    #[test]
    fn every_verb_that_lists_prints_json_too() {
        let lists = [
            &["get"][..],
            &["events"],
            &["version"],
            &["image", "list"],
            &["cluster", "members"],
            &["cluster", "status"],
            &["config", "get-contexts"],
            &["config", "view"],
        ];
        for path in lists {
            let mut command = command();
            for name in path {
                command = command.find_subcommand(name).unwrap().clone();
            }
            let output = command.get_arguments().find(|a| a.get_long() == Some("output"));
            let values = output.unwrap_or_else(|| panic!("{path:?} has no -o")).get_possible_values();
            assert!(values.iter().any(|v| v.get_name() == "json"), "{path:?}");
        }
    }
}
