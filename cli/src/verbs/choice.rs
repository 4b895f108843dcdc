//! Which objects a verb is about: those named, those of a selector, all of a type, or a manifest's. What
//! contradicts itself is refused in kubectl's words: the one that is ignored would be a surprise.

use crate::error::CliError;
use crate::target::{self, Target};

/// What chooses objects beside the resources that are named.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choice<'a> {
    /// -l; empty: none.
    pub labels: &'a str,
    /// --field-selector; empty: none.
    pub fields: &'a str,
    /// --all.
    pub all: bool,
    /// A type alone means all of its objects: for verbs that only look.
    pub type_alone: bool,
}

impl Choice<'_> {
    /// Reads the resources of a verb that takes them.
    pub fn targets(&self, resources: &[String]) -> Result<Vec<Target>, CliError> {
        let refused = |why: &str| Err(CliError::Usage(why.to_owned()));
        let selected = !(self.labels.is_empty() && self.fields.is_empty());
        if self.all && selected {
            return refused("cannot set --all and --selector at the same time");
        }
        let targets = target::parse(resources)?;
        if targets.iter().any(|t| t.name.is_some()) && (self.all || selected) {
            return refused("name cannot be provided when a selector is specified");
        }
        if targets.iter().any(|t| t.name.is_none()) && !(self.all || selected || self.type_alone) {
            return refused(
                "resource(s) were provided, but no name was specified: name them, or use -l LABELS or --all",
            );
        }
        Ok(targets)
    }

    /// For a verb that is given manifests: they name their objects, and nothing else may.
    pub fn of_manifests(&self, resources: &[String]) -> Result<(), CliError> {
        let too_much = match (resources, self) {
            ([], Choice { labels: "", fields: "", all: false, .. }) => return Ok(()),
            ([], _) => "a selector or --all",
            _ => "resource arguments",
        };
        Err(CliError::Usage(format!(
            "when paths, URLs, or stdin is provided as input, you may not specify {too_much} as well"
        )))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    const NONE: Choice<'_> = Choice { labels: "", fields: "", all: false, type_alone: false };

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let labels = Choice { labels: "app=web", ..NONE };
        let fields = Choice { fields: "spec.nodeName=n1", ..NONE };
        let all = Choice { all: true, ..NONE };
        let looks = Choice { type_alone: true, ..NONE };
        let (named, unnamed, both) =
            (Some("name cannot be provided"), Some("no name was specified"), Some("--all and --selector"));
        for (choice, resources, refusal) in [
            (NONE, "deploy", unnamed),
            (NONE, "deploy web api", None),
            (NONE, "deploy/web pod/x", None),
            (labels, "deploy", None),
            (labels, "deploy web", named),
            (labels, "deploy/web", named),
            (fields, "pods", None),
            (fields, "pods x", named),
            (all, "deploy", None),
            (all, "deploy web", named),
            (Choice { labels: "app=web", ..all }, "deploy", both),
            (looks, "deploy", None),
            (looks, "deploy web", None),
            (Choice { labels: "app=web", ..looks }, "deploy", None),
            (Choice { labels: "app=web", ..looks }, "deploy/web", named),
        ] {
            match (choice.targets(&words(resources)), refusal) {
                (Ok(targets), None) => assert!(!targets.is_empty(), "{choice:?} {resources}"),
                (Err(CliError::Usage(told)), Some(words)) => assert!(told.contains(words), "{resources}: {told}"),
                (other, _) => panic!("{choice:?} {resources}: {other:?}"),
            }
        }
    }

    #[test]
    fn manifests_name_their_objects_alone() {
        assert!(NONE.of_manifests(&[]).is_ok());
        let told =
            |choice: Choice<'_>, resources: &str| choice.of_manifests(&words(resources)).unwrap_err().to_string();
        assert!(told(NONE, "pod b").contains("may not specify resource arguments as well"));
        assert!(told(Choice { labels: "a=b", ..NONE }, "").contains("a selector or --all"));
        assert!(told(Choice { all: true, ..NONE }, "").contains("a selector or --all"));
    }
}
