//! What a person names: `pods`, `po x y`, `deploy/web pod/x`, `pods,deploy`.

use trellis_model::Kind;

use crate::error::CliError;

/// A kind, and one of its objects or all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its kind.
    pub kind: Kind,
    /// None: all that selectors leave.
    pub name: Option<String>,
    /// Where a manifest says that it is; None: where the arguments or the context say.
    pub namespace: Option<String>,
}

impl Target {
    /// An object, or all of a kind.
    pub fn new(kind: Kind, name: Option<String>) -> Self {
        Self { kind, name, namespace: None }
    }
}

/// The kinds that `all` stands for.
const ALL: [Kind; 3] = [Kind::Pod, Kind::Deployment, Kind::ReplicaSet];

/// The kind of a word, or an error that lists what there is.
pub fn kind(word: &str) -> Result<Kind, CliError> {
    Kind::from_resource_name(word).ok_or_else(|| {
        let known: Vec<&str> = Kind::ALL.iter().map(|k| k.plural()).collect();
        CliError::Usage(format!(
            "the server doesn't have a resource type {word:?}: it has {} (see `trellis api-resources`)",
            known.join(", ")
        ))
    })
}

/// Reads the arguments of a verb that takes resources.
pub fn parse(args: &[String]) -> Result<Vec<Target>, CliError> {
    let Some(first) = args.first() else {
        return Err(CliError::Usage(
            "you must name the resource, as in `pods`, `pod web-1` or `deployment/web`".into(),
        ));
    };
    if args.iter().any(|a| a.contains('/')) {
        return args.iter().map(|a| slashed(a)).collect();
    }
    let mut kinds = Vec::new();
    for word in first.split(',').filter(|w| !w.is_empty()) {
        if word == "all" {
            kinds.extend(ALL);
        } else {
            kinds.push(kind(word)?);
        }
    }
    let names = &args[1..];
    if names.is_empty() {
        return Ok(kinds.into_iter().map(|kind| Target::new(kind, None)).collect());
    }
    let mut out = Vec::new();
    for k in kinds {
        out.extend(names.iter().map(|n| Target::new(k, Some(n.clone()))));
    }
    Ok(out)
}

fn slashed(arg: &str) -> Result<Target, CliError> {
    match arg.split_once('/') {
        Some((k, n)) if !k.is_empty() && !n.is_empty() && !n.contains('/') => {
            Ok(Target::new(kind(k)?, Some(n.to_owned())))
        }
        _ => Err(CliError::Usage(format!(
            "there is no need to mix forms: {arg:?} is not TYPE/NAME like the other arguments"
        ))),
    }
}

/// Reads one object of a verb whose usual kind is `default`: `x`, `pod/x`.
pub fn one(arg: &str, default: Kind) -> Result<(Kind, String), CliError> {
    match arg.contains('/') {
        false => Ok((default, arg.to_owned())),
        true => slashed(arg).map(|t| (t.kind, t.name.unwrap_or_default())),
    }
}

/// Splits `po x y k=v k-` into the resources and the changes behind them.
pub fn split_changes(args: &[String]) -> (Vec<String>, Vec<String>) {
    let is_change = |a: &String| a.contains('=') || a.ends_with('-');
    let at = args.iter().skip(1).position(is_change).map_or(args.len(), |i| i + 1);
    (args[..at].to_vec(), args[at..].to_vec())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }
    fn t(kind: Kind, name: &str) -> Target {
        Target::new(kind, Some(name.to_owned()).filter(|n| !n.is_empty()))
    }

    #[test]
    fn forms() {
        assert_eq!(parse(&words("pods")).unwrap(), [t(Kind::Pod, "")]);
        assert_eq!(parse(&words("po x y")).unwrap(), [t(Kind::Pod, "x"), t(Kind::Pod, "y")]);
        assert_eq!(parse(&words("deploy/web pod/x")).unwrap(), [t(Kind::Deployment, "web"), t(Kind::Pod, "x")]);
        assert_eq!(parse(&words("po,deployments.apps")).unwrap(), [t(Kind::Pod, ""), t(Kind::Deployment, "")]);
        assert_eq!(parse(&words("all")).unwrap().len(), 3);
        for bad in ["", "foo", "pod/x y", "pod/", "services", "pod/x/y"] {
            assert!(parse(&words(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn changes_stand_behind() {
        let (r, c) = split_changes(&words("pods x a=b c-"));
        assert_eq!((r, c), (words("pods x"), words("a=b c-")));
        let (r, c) = split_changes(&words("node/n1 a=b"));
        assert_eq!((r, c), (words("node/n1"), words("a=b")));
    }
}
