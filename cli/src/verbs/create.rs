//! `create`: objects that must not be there yet.

use base64::Engine;
use serde_json::{Map, Value, json};
use trellis_model::Kind;

use super::Failures;
use super::write::{self, Teller};
use crate::cli::Global;
use crate::error::CliError;
use crate::manifest::{self, Loaded, Manifest, Validate};
use crate::session::Session;
use crate::target;

pub const EXAMPLES: &str = "Examples:
  trellis create -f web.yaml
  trellis create namespace staging
  trellis create configmap settings --from-literal=colour=green --from-file=app.toml
  trellis create secret password --from-literal=pw=correct-horse";

/// Arguments of `create`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    write: write::WriteArgs,
    /// namespace NAME, configmap NAME or secret [generic] NAME
    #[arg(value_name = "TYPE NAME", conflicts_with = "filename", num_args = 0..=3)]
    what: Vec<String>,
    /// KEY=VALUE of a ConfigMap or Secret
    #[arg(long, value_name = "KEY=VALUE")]
    from_literal: Vec<String>,
    /// File (or KEY=FILE) of a ConfigMap or Secret
    #[arg(long, value_name = "[KEY=]FILE")]
    from_file: Vec<String>,
}

/// Creates every object; goes on after an error, unless nobody answers.
pub async fn run(global: &Global, args: Args) -> Result<(), CliError> {
    let mut session = Session::open(global)?;
    let write = &args.write;
    session.ignore_unknown = write.validate == Validate::Ignore;
    let Loaded { mut manifests, unusable } = if args.what.is_empty() {
        manifest::load(&write.source, &session, write.validate)?
    } else {
        Loaded { manifests: vec![named(&args, &session)?], unusable: Vec::new() }
    };
    manifest::in_order(&mut manifests);
    let mut failures = Failures::of(&unusable);
    let mut teller = Teller::new(write);
    for (i, m) in manifests.iter().enumerate() {
        match session.create(m.kind, &m.object, write.dry_run.is_on()).await {
            Ok(object) => teller.tell(m.kind, object, "created")?,
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

fn named(args: &Args, session: &Session) -> Result<Manifest, CliError> {
    let kind = target::kind(&args.what[0])?;
    let words: Vec<&str> = args.what[1..].iter().map(String::as_str).collect();
    let name = match (kind, words.as_slice()) {
        (Kind::Namespace | Kind::ConfigMap | Kind::Secret, [name]) => *name,
        (Kind::Secret, ["generic", name]) => *name,
        (Kind::Namespace | Kind::ConfigMap | Kind::Secret, _) => {
            return Err(CliError::Usage(format!("exactly one NAME is required for a {kind}")));
        }
        _ => {
            return Err(CliError::Usage(format!("a {kind} is created from a manifest: use `trellis create -f FILE`")));
        }
    };
    let mut object = json!({"apiVersion": kind.api_version(), "kind": kind.name(), "metadata": {"name": name}});
    if kind.namespaced() {
        object["metadata"]["namespace"] = json!(session.namespace);
        data(args, kind, &mut object)?;
    }
    Ok(Manifest { kind, object, origin: "arguments".to_owned() })
}

fn data(args: &Args, kind: Kind, object: &mut Value) -> Result<(), CliError> {
    let base64 = |b: &[u8]| json!(base64::engine::general_purpose::STANDARD.encode(b));
    let (mut plain, mut binary) = (Map::new(), Map::new());
    let mut add = |key: String, bytes: Vec<u8>| match (kind, String::from_utf8(bytes)) {
        (Kind::ConfigMap, Ok(text)) => plain.insert(key, json!(text)),
        (Kind::ConfigMap, Err(e)) => binary.insert(key, base64(e.as_bytes())),
        (_, Ok(text)) => plain.insert(key, base64(text.as_bytes())),
        (_, Err(e)) => plain.insert(key, base64(e.as_bytes())),
    };
    for literal in &args.from_literal {
        let (k, v) = literal
            .split_once('=')
            .ok_or_else(|| CliError::Usage(format!("--from-literal={literal}: expected KEY=VALUE")))?;
        add(k.to_owned(), v.as_bytes().to_vec());
    }
    for file in &args.from_file {
        let (key, path) = match file.split_once('=') {
            Some((k, p)) => (k.to_owned(), p),
            None => (file.rsplit('/').next().unwrap_or(file).to_owned(), file.as_str()),
        };
        let bytes = std::fs::read(path).map_err(|e| CliError::Local(format!("{path}: {e}")))?;
        add(key, bytes);
    }
    if !plain.is_empty() {
        object["data"] = Value::Object(plain);
    }
    if !binary.is_empty() {
        object["binaryData"] = Value::Object(binary);
    }
    Ok(())
}
