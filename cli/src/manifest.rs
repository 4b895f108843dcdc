//! Manifests: from files, folders and stdin to objects with their kind and namespace.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use trellis_model::{Kind, Object};

use crate::error::CliError;
use crate::session::{Session, identity};
use crate::yaml;

/// Where manifests come from.
#[derive(clap::Args, Debug, Clone, Default)]
pub struct Source {
    /// File or folder with manifests (YAML or JSON); - is stdin
    #[arg(short, long = "filename", value_name = "FILE")]
    pub filename: Vec<String>,
    /// Look into the folders of a folder too
    #[arg(short = 'R', long)]
    pub recursive: bool,
}

/// One object that a manifest describes.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Its kind.
    pub kind: Kind,
    /// The object, with metadata.namespace where its kind has one.
    pub object: Value,
    /// Where it stands, for messages.
    pub origin: String,
}

/// What the files hold: the objects, and why the rest of them cannot be used.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The objects.
    pub manifests: Vec<Manifest>,
    /// One error for each document that is no object of ours; the others are not held up by it.
    pub unusable: Vec<CliError>,
}

/// How fields that the kind does not have are met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Validate {
    /// They are an error
    #[value(alias = "true")]
    Strict,
    /// They are warned about
    Warn,
    /// They are ignored
    #[value(alias = "false")]
    Ignore,
}

/// Reads every object, in the order of the files. A document that is no object of ours is set aside
/// with an error that names it; a file that cannot be read stops everything.
pub fn load(source: &Source, session: &Session, validate: Validate) -> Result<Loaded, CliError> {
    if source.filename.is_empty() {
        return Err(CliError::Usage("must specify manifests with -f FILE (- for stdin)".into()));
    }
    let mut out = Loaded::default();
    for name in &source.filename {
        for (origin, text) in read(name, source.recursive)? {
            for (i, document) in yaml::documents(&text).into_iter().enumerate() {
                let origin = if i == 0 { origin.clone() } else { format!("{origin}, document {}", i + 1) };
                match document {
                    Ok(document) => expand(document).into_iter().for_each(|object| {
                        match manifest(object, &origin, session, validate) {
                            Ok(m) => out.manifests.push(m),
                            Err(e) => out.unusable.push(e),
                        }
                    }),
                    Err(e) => out.unusable.push(CliError::Local(format!("{origin}: {e}"))),
                }
            }
        }
    }
    if out.manifests.is_empty() && out.unusable.is_empty() {
        let files = source.filename.join(", ");
        return Err(CliError::Local(format!("no objects passed: {files} is empty, or holds comments only")));
    }
    Ok(out)
}

/// Namespaces first, then what Pods need, then Pods and what makes them.
pub fn in_order(manifests: &mut [Manifest]) {
    manifests.sort_by_key(|m| Kind::ALL.iter().position(|k| *k == m.kind));
}

fn read(name: &str, recursive: bool) -> Result<Vec<(String, String)>, CliError> {
    if name == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(|e| CliError::Local(format!("reading stdin: {e}")))?;
        return Ok(vec![("stdin".to_owned(), text)]);
    }
    let path = Path::new(name);
    let bad = |p: &Path, e: std::io::Error| CliError::Local(format!("{}: {e}", p.display()));
    let meta = std::fs::metadata(path).map_err(|e| bad(path, e))?;
    let mut files = Vec::new();
    if meta.is_dir() {
        folder(path, recursive, &mut files)?;
        if files.is_empty() {
            return Err(CliError::Local(format!(
                "{name}: the folder holds no .yaml, .yml or .json file{}",
                if recursive { "" } else { " (use -R to look into its folders)" }
            )));
        }
    } else {
        files.push(path.to_owned());
    }
    files
        .into_iter()
        .map(|p| match std::fs::read_to_string(&p) {
            Ok(text) => Ok((p.display().to_string(), text)),
            Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
                Err(CliError::Local(format!("{}: this is no text (UTF-8), so it is no manifest", p.display())))
            }
            Err(e) => Err(bad(&p, e)),
        })
        .collect()
}

fn folder(path: &Path, recursive: bool, out: &mut Vec<PathBuf>) -> Result<(), CliError> {
    let bad = |e: std::io::Error| CliError::Local(format!("{}: {e}", path.display()));
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(path).map_err(bad)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>().map_err(bad)?;
    entries.sort();
    for p in entries {
        if p.is_dir() {
            if recursive {
                folder(&p, recursive, out)?;
            }
        } else if p.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json") {
            out.push(p);
        }
    }
    Ok(())
}

/// A List stands for its items.
fn expand(document: Value) -> Vec<Value> {
    let is_list = document["kind"].as_str().is_some_and(|k| k.ends_with("List"));
    match document {
        Value::Object(mut m) if is_list => match m.shift_remove("items") {
            Some(Value::Array(items)) => items,
            _ => Vec::new(),
        },
        d => vec![d],
    }
}

fn manifest(mut object: Value, origin: &str, session: &Session, validate: Validate) -> Result<Manifest, CliError> {
    let kind = kind_of(&object).map_err(|e| CliError::Local(format!("{origin}: {e}")))?;
    if kind.namespaced() {
        let own = identity(&object).0.to_owned();
        if own.is_empty() {
            if !object["metadata"].is_object() {
                object["metadata"] = json!({});
            }
            object["metadata"]["namespace"] = json!(session.namespace);
        } else if session.namespace_given && own != session.namespace {
            return Err(CliError::Local(format!(
                "the namespace from the provided object {own:?} does not match the namespace {:?}. You must pass '--namespace={own}' to perform this operation.",
                session.namespace
            )));
        }
    }
    check(kind, &object, validate).map_err(|e| CliError::Local(format!("{origin}: {e}")))?;
    Ok(Manifest { kind, object, origin: origin.to_owned() })
}

/// The kind, or what is wrong with how the manifest names it.
fn kind_of(object: &Value) -> Result<Kind, String> {
    let found = match object {
        Value::Object(_) => {
            let name = Some(identity(object).1).filter(|n| !n.is_empty()).map(|n| format!("object {n:?}: "));
            return Object::kind_of_value(object).map_err(|e| {
                format!("{}{}", name.unwrap_or_default(), meant(object).unwrap_or_else(|| e.to_string()))
            });
        }
        Value::Array(_) => "a list",
        _ => "a single value",
    };
    Err(format!("this is {found}, not a manifest, which begins with apiVersion, kind and metadata"))
}

/// Names a kind that is written a little differently.
fn meant(object: &Value) -> Option<String> {
    let (version, told) = (object["apiVersion"].as_str()?, object["kind"].as_str()?);
    let lower = told.to_ascii_lowercase();
    let kind = Kind::ALL.iter().find(|k| k.name().eq_ignore_ascii_case(told) || k.plural() == lower)?;
    let (name, served) = (kind.name(), kind.api_version());
    (name != told || served != version).then(|| {
        format!(
            "no matches for kind {told:?} in version {version:?}: did you mean kind: {name} with apiVersion: {served}?"
        )
    })
}

/// Refuses wrong types, and unknown fields unless told otherwise. Whoever mistyped a field's name
/// hears of the manifest's other problems too, not one round later.
fn check(kind: Kind, object: &Value, validate: Validate) -> Result<(), String> {
    let (mut typed, unknown) =
        Object::from_value(kind, object).map_err(|first| match Object::type_errors(kind, object).as_slice() {
            [] => first.to_string(),
            all => all.iter().fold(format!("{kind} {:?} cannot be read:", identity(object).1), |text, (f, m)| {
                format!("{text}\n* {f}: {m}")
            }),
        })?;
    let named = |f: &String| format!("unknown field {f:?}");
    match validate {
        Validate::Strict if !unknown.is_empty() => {
            let list: Vec<String> = unknown.iter().map(named).collect();
            let mut text = format!(
                "{kind} {:?}: strict decoding error: {} (--validate=warn sends it all the same)",
                identity(object).1,
                list.join(", ")
            );
            trellis_model::defaults::apply(&mut typed);
            for problem in trellis_model::validate::create(&typed) {
                text.push_str(&format!("\n* {problem}"));
            }
            return Err(text);
        }
        // The server tells of them.
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn what_is_no_manifest_of_ours_is_told_by_name_and_with_what_to_do() {
        let told = |v: Value| kind_of(&v).unwrap_err();
        let object =
            |version: &str, kind: &str| json!({"apiVersion": version, "kind": kind, "metadata": {"name": "web"}});
        assert_eq!(
            told(object("v1", "Deployment")),
            "object \"web\": no matches for kind \"Deployment\" in version \"v1\": did you mean kind: Deployment with apiVersion: apps/v1?"
        );
        assert!(told(object("v1", "pods")).ends_with("did you mean kind: Pod with apiVersion: v1?"));
        let unknown = told(object("batch/v1", "CronJob"));
        assert!(
            unknown.starts_with("object \"web\": no matches for kind \"CronJob\"")
                && unknown.contains("Deployment (apps/v1)")
        );
        assert!(told(json!({"kind": "Pod"})).contains("no apiVersion"));
        assert!(told(json!(["a"])).starts_with("this is a list, not a manifest"));
        assert!(told(json!("text")).starts_with("this is a single value, not a manifest"));
        let wrong = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": {}}});
        let told = check(Kind::Pod, &wrong, Validate::Strict).unwrap_err();
        assert!(told.starts_with("Pod \"p\" cannot be read:\n* spec.containers: "), "{told}");
    }

    #[test]
    fn a_mistyped_field_does_not_hide_other_problems() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"},
            "spec": {"frobnicate": 1, "restartPolicy": "Sometimes", "containers": [{"name": "a", "imagee": "x"}]}});
        let told = check(Kind::Pod, &pod, Validate::Strict).unwrap_err();
        for want in [
            "unknown field \"spec.frobnicate\"",
            "unknown field \"spec.containers[0].imagee\"",
            "\n* spec.containers[0].image: Required value",
            "\n* spec.restartPolicy: Unsupported value: \"Sometimes\"",
        ] {
            assert!(told.contains(want), "{want} is missing in {told}");
        }
        assert!(check(Kind::Pod, &pod, Validate::Ignore).is_ok());
    }
}
