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

/// Reads every object, in the order of the files. An error names the file and the document.
pub fn load(source: &Source, session: &Session, validate: Validate) -> Result<Vec<Manifest>, CliError> {
    if source.filename.is_empty() {
        return Err(CliError::Usage("must specify manifests with -f FILE (- for stdin)".into()));
    }
    let mut out = Vec::new();
    for name in &source.filename {
        for (origin, text) in read(name, source.recursive)? {
            let documents = yaml::parse(&text).map_err(|e| CliError::Local(format!("{origin}: {e}")))?;
            for (i, document) in documents.into_iter().enumerate() {
                let origin = if i == 0 { origin.clone() } else { format!("{origin}, document {}", i + 1) };
                for object in expand(document) {
                    out.push(manifest(object, &origin, session, validate)?);
                }
            }
        }
    }
    if out.is_empty() {
        return Err(CliError::Local("no objects passed: the files hold no manifest".into()));
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
    let said = |e: &dyn std::fmt::Display| CliError::Local(format!("{origin}: {e}"));
    let kind = Object::kind_of_value(&object).map_err(|e| said(&e))?;
    let (_, unknown) = Object::from_value(kind, &object).map_err(|e| said(&e))?;
    let named = |f: &String| format!("unknown field {f:?}");
    match validate {
        Validate::Strict if !unknown.is_empty() => {
            let list: Vec<String> = unknown.iter().map(named).collect();
            let name = identity(&object).1;
            return Err(CliError::Local(format!(
                "{origin}: {kind} {name:?}: strict decoding error: {} (--validate=warn sends it all the same)",
                list.join(", ")
            )));
        }
        Validate::Warn => {
            for f in &unknown {
                eprintln!("Warning: {}", named(f));
            }
        }
        _ => {}
    }
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
    Ok(Manifest { kind, object, origin: origin.to_owned() })
}
