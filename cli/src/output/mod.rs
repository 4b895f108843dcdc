//! What verbs print: tables with kubectl's columns, whole objects as JSON or YAML, names.

pub mod age;
pub mod columns;
pub mod pod_status;
pub mod table;

use std::io::{ErrorKind, Write};

use serde::Serialize;
use serde_json::{Value, json};
use trellis_model::Kind;

use crate::error::CliError;
use crate::yaml;

/// How objects are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A table with more columns
    Wide,
    /// Whole objects
    Json,
    /// Whole objects
    Yaml,
    /// TYPE/NAME, one a line
    Name,
}

/// Writes data to stdout. A reader that has gone (`| head`) ends the program quietly.
pub fn print(text: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Err(CliError::Exit(0)),
        Err(e) => Err(CliError::Local(format!("writing to stdout: {e}"))),
    }
}

/// JSON as kubectl prints it: four spaces, keys sorted.
pub fn json_text(value: &Value) -> String {
    let mut out = Vec::new();
    let format = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut ser = serde_json::Serializer::with_formatter(&mut out, format);
    // A Value serialises into memory without any way to fail.
    let _ = yaml::sorted(value).serialize(&mut ser);
    let mut text = String::from_utf8_lossy(&out).into_owned();
    text.push('\n');
    text
}

/// `pod/x`, `deployment.apps/web`.
pub fn name_of(kind: Kind, object: &Value) -> String {
    format!("{}/{}", kind.qualified_singular(), object["metadata"]["name"].as_str().unwrap_or_default())
}

/// Several objects as one, the way kubectl does.
pub fn list_of(items: Vec<Value>) -> Value {
    json!({"apiVersion": "v1", "items": items, "kind": "List", "metadata": {"resourceVersion": ""}})
}

/// Whole objects, one bare or many as a List.
pub fn whole(format: Format, mut items: Vec<Value>, single: bool) -> String {
    for item in &mut items {
        hide_managed_fields(item);
    }
    let value = match (single, items.len()) {
        (true, 1) => items.swap_remove(0),
        _ => list_of(items),
    };
    match format {
        Format::Yaml => yaml::write(&value),
        _ => json_text(&value),
    }
}

/// Objects of which more may follow: each whole, or its name. None: the format is a table's.
pub fn apart(format: Option<Format>, kind: Kind, objects: &[Value]) -> Option<String> {
    let each: Box<dyn Fn(&Value) -> String> = match format {
        Some(Format::Json) => Box::new(|o| whole(Format::Json, vec![o.clone()], true)),
        Some(Format::Yaml) => Box::new(|o| format!("---\n{}", whole(Format::Yaml, vec![o.clone()], true))),
        Some(Format::Name) => Box::new(|o| format!("{}\n", name_of(kind, o))),
        Some(Format::Wide) | None => return None,
    };
    Some(objects.iter().map(each).collect())
}

fn hide_managed_fields(item: &mut Value) {
    if let Some(m) = item["metadata"].as_object_mut() {
        m.shift_remove("managedFields");
    }
}

/// An error's first word in red on a terminal, plain elsewhere; for stderr.
pub fn coloured_error(text: &str) -> String {
    use std::io::IsTerminal;
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    match text.split_once(':') {
        Some((head, rest)) if colour && !head.contains('\n') => format!("\x1b[31m{head}:\x1b[0m{rest}"),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_of_which_more_may_follow() {
        let objects = [json!({"metadata": {"name": "a"}}), json!({"metadata": {"name": "b"}})];
        let shown = |format| apart(format, Kind::Event, &objects);
        assert_eq!(shown(Some(Format::Name)).as_deref(), Some("event/a\nevent/b\n"));
        assert_eq!(
            shown(Some(Format::Yaml)).as_deref(),
            Some("---\nmetadata:\n  name: a\n---\nmetadata:\n  name: b\n")
        );
        let json = shown(Some(Format::Json)).unwrap_or_default();
        assert_eq!(yaml::parse(&json), Ok(objects.to_vec()), "no List: nobody knows where it ends");
        assert_eq!((shown(None), shown(Some(Format::Wide))), (None, None));
    }
}
