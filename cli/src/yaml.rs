//! YAML as kubectl reads it, and as it writes it.
//!
//! kubectl reads YAML 1.1 (goyaml v2): unquoted yes, no, on, off are booleans, `0644` is octal.
//! It writes keys sorted, lists not indented.

use serde_json::{Map, Value};

/// Every document of a text; JSON is YAML. Empty documents are skipped.
pub fn parse(text: &str) -> Result<Vec<Value>, String> {
    if text.trim_start().starts_with('{') {
        // Several JSON objects in a row are what tools print.
        let documents: Result<Vec<Value>, _> = serde_json::Deserializer::from_str(text).into_iter().collect();
        if let Ok(documents) = documents {
            return Ok(documents);
        }
    }
    let mut options = serde_saphyr::Options::default();
    options.legacy_octal_numbers = true;
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options).map_err(|e| {
        let told = in_our_words(&e.to_string());
        told.strip_prefix("error: ").map(str::to_owned).unwrap_or(told)
    })?;
    Ok(documents.into_iter().filter(|d| !d.is_null()).collect())
}

/// What the parser says to programmers, for people.
fn in_our_words(told: &str) -> String {
    told.replace(", set DuplicateKeyPolicy in Options if acceptable", "")
        .replace("tabs disallowed within this context (block indentation)", "a tab: YAML is indented with spaces")
}

/// The documents of a text, each on its own: one that cannot be read leaves the others as they are.
pub fn documents(text: &str) -> Vec<Result<Value, String>> {
    match parse(text) {
        Ok(all) => all.into_iter().map(Ok).collect(),
        // Only a text that cannot be read as a whole is cut, where YAML says a document begins.
        Err(whole) => match cut(text) {
            pieces if pieces.len() < 2 => vec![Err(whole)],
            pieces => pieces
                .iter()
                .flat_map(|p| match parse(p) {
                    Ok(all) => all.into_iter().map(Ok).collect(),
                    Err(e) => vec![Err(e)],
                })
                .collect(),
        },
    }
}

/// One text per document, each after as many empty lines as stood before it, so that errors name
/// the line of the file.
fn cut(text: &str) -> Vec<String> {
    let mut pieces = vec![String::new()];
    for (at, line) in text.lines().enumerate() {
        let begins = line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t']));
        if begins {
            pieces.push("\n".repeat(at));
        }
        if let Some(piece) = pieces.last_mut() {
            piece.push_str(line);
            piece.push('\n');
        }
    }
    pieces
}

/// Keys in alphabetical order at every depth, as kubectl prints them.
pub fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(m) => {
            let mut keys: Vec<&String> = m.keys().collect();
            keys.sort();
            let pairs = keys.into_iter().map(|k| (k.clone(), sorted(&m[k])));
            Value::Object(pairs.collect::<Map<String, Value>>())
        }
        Value::Array(a) => Value::Array(a.iter().map(sorted).collect()),
        v => v.clone(),
    }
}

/// The value as YAML, ending in a newline.
pub fn write(value: &Value) -> String {
    let mut out = String::new();
    block(&sorted(value), 0, &mut out);
    out
}

fn block(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(m) if !m.is_empty() => {
            for (i, (k, v)) in m.iter().enumerate() {
                if i > 0 {
                    out.push_str(&" ".repeat(indent));
                }
                out.push_str(&scalar_text(k));
                out.push(':');
                member(v, indent, out);
            }
        }
        Value::Array(a) if !a.is_empty() => {
            for (i, v) in a.iter().enumerate() {
                if i > 0 {
                    out.push_str(&" ".repeat(indent));
                }
                out.push_str("- ");
                block(v, indent + 2, out);
            }
        }
        v => {
            out.push_str(&leaf(v, indent));
            out.push('\n');
        }
    }
}

fn member(v: &Value, indent: usize, out: &mut String) {
    match v {
        Value::Object(m) if !m.is_empty() => {
            out.push('\n');
            out.push_str(&" ".repeat(indent + 2));
            block(v, indent + 2, out);
        }
        Value::Array(a) if !a.is_empty() => {
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            block(v, indent, out);
        }
        v => {
            out.push(' ');
            out.push_str(&leaf(v, indent + 2));
            out.push('\n');
        }
    }
}

fn leaf(v: &Value, indent: usize) -> String {
    match v {
        Value::Object(_) => "{}".to_owned(),
        Value::Array(_) => "[]".to_owned(),
        Value::String(s) if is_literal(s) => literal(s, indent),
        Value::String(s) => scalar_text(s),
        v => v.to_string(),
    }
}

fn is_literal(s: &str) -> bool {
    // Not lines(): it takes a CR for a part of the line's end, which a block would lose.
    s.contains('\n')
        && !s.starts_with([' ', '\n'])
        && s.split('\n').all(|l| !l.ends_with(' ') && !l.contains('\t') && !l.chars().any(char::is_control))
}

fn literal(s: &str, indent: usize) -> String {
    let chomp = match s.bytes().rev().take_while(|b| *b == b'\n').count() {
        0 => "-",
        1 => "",
        _ => "+",
    };
    let pad = " ".repeat(indent.max(2));
    let body = s.strip_suffix('\n').unwrap_or(s);
    let lines: Vec<String> =
        body.split('\n').map(|l| if l.is_empty() { String::new() } else { format!("{pad}{l}") }).collect();
    format!("|{chomp}\n{}", lines.join("\n"))
}

/// JSON's quotes are YAML's too, once the controls that JSON lets pass are escaped.
fn quoted(s: &str) -> String {
    let escape = |c: char| match u32::from(c) {
        n @ 0x7f..=0x9f => format!("\\u{n:04x}"),
        _ => c.to_string(),
    };
    Value::String(s.to_owned()).to_string().chars().map(escape).collect()
}

/// A string, quoted when it would be read back as something else.
fn scalar_text(s: &str) -> String {
    let first_bad = |c: char| "-?:,[]{}#&*!|>'\"%@` ".contains(c);
    let lower = s.to_ascii_lowercase();
    let words = [
        "", "~", "null", "true", "false", "yes", "no", "on", "off", "y", "n", "<<", "=", ".inf", "-.inf", "+.inf",
        ".nan",
    ];
    let numeric = s.contains(|c: char| c.is_ascii_digit())
        && s.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c))
        && (s.parse::<f64>().is_ok()
            || s.replace('_', "").trim_start_matches(['+', '-']).chars().all(|c| {
                c.is_ascii_hexdigit() || matches!(c, 'x' | 'o' | ':' | '.' | '-' | 'T' | 'Z' | 'i' | 'n' | 'f')
            }));
    if s.chars().any(char::is_control) {
        return quoted(s);
    }
    let dash_word = s.starts_with('-') && s.len() > 1 && !s.starts_with("- ") && !s.starts_with("---");
    if words.contains(&lower.as_str())
        || numeric
        || (s.starts_with(first_bad) && !dash_word)
        || s.ends_with([' ', ':'])
        || s.contains(": ")
        || s.contains(" #")
    {
        return if s.contains('\'') || s.contains('\\') {
            quoted(s)
        } else if numeric || words.contains(&lower.as_str()) {
            format!("\"{s}\"")
        } else {
            format!("'{s}'")
        };
    }
    s.to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use serde_json::json;

    #[test]
    fn errors_are_for_people() {
        let told = parse("a: 1\na: 2\n").unwrap_err();
        assert!(told.contains("duplicate mapping key: a") && !told.contains("Options"), "{told}");
        let told = parse("a:\n\tb: 1\n").unwrap_err();
        assert!(told.contains("line 2") && told.contains("indented with spaces"), "{told}");
    }

    #[test]
    fn reads_as_kubectl_does() {
        let text = "a: yes\nb: 'yes'\nc: 0644\nd: off\ne: 1.5\nf: ~\ng: \"0644\"\nh: 10\ni: 1Gi\nj: 3.14.1\n---\n# nothing\n---\nk: [1, two]\n";
        assert_eq!(
            parse(text).unwrap(),
            [
                json!({"a":true,"b":"yes","c":420,"d":false,"e":1.5,"f":null,"g":"0644","h":10,"i":"1Gi","j":"3.14.1"}),
                json!({"k":[1,"two"]})
            ]
        );
        assert_eq!(parse("{\"a\":1}\n{\"b\":2}").unwrap().len(), 2);
        assert_eq!(parse("{a: 1}").unwrap(), [json!({"a":1})]);
        assert!(parse("a: 1\na: 2").is_err(), "a key twice is a mistake");
        assert!(parse("a: [").is_err());
        assert_eq!(parse("").unwrap(), Vec::<Value>::new());
    }

    #[test]
    fn a_broken_document_leaves_the_others() {
        let read = documents("a: 1\n---\nb: {\n--- # two\nc: |\n  --- text\n");
        assert_eq!(read.len(), 3);
        assert_eq!(read[0], Ok(json!({"a":1})));
        let told = read[1].clone().unwrap_err();
        assert!(told.contains("line 3"), "{told}");
        assert_eq!(read[2], Ok(json!({"c":"--- text\n"})));
        assert_eq!(documents("b: {").len(), 1);
    }

    #[test]
    fn anchors_and_blocks() {
        let text = "base: &b\n  x: 1\nuse: *b\ntext: |\n  one\n  two\n";
        assert_eq!(parse(text).unwrap()[0], json!({"base":{"x":1},"use":{"x":1},"text":"one\ntwo\n"}));
    }

    #[test]
    fn writes_as_kubectl_does() {
        let v = json!({"spec":{"list":[{"b":1,"a":"x"},"s"],"empty":{},"none":[]},"kind":"Pod",
            "data":{"f":"one\ntwo\n","yes":"yes","n":"1","t":"10:30","p":"a: b","neg":"-c"}});
        assert_eq!(
            write(&v),
            "data:\n  f: |\n    one\n    two\n  \"n\": \"1\"\n  neg: -c\n  p: 'a: b'\n  t: \"10:30\"\n  \"yes\": \"yes\"\nkind: Pod\nspec:\n  empty: {}\n  list:\n  - a: x\n    b: 1\n  - s\n  none: []\n"
        );
    }

    #[test]
    fn what_is_written_reads_back() {
        let hard = [
            "",
            " ",
            "a",
            "yes",
            "No",
            "null",
            "~",
            "1",
            "-1",
            "1e3",
            "0x1f",
            "0644",
            "1.5",
            ".5",
            "a: b",
            "a #b",
            "#a",
            "- a",
            "-a",
            "--flag",
            "[x",
            "{x",
            "'q'",
            "\"d\"",
            "it's: x",
            "tab\there",
            "a\nb",
            "a\nb\n",
            "a\nb\n\n",
            "a\r\nb\r\n",
            "a\r\nb",
            "a\nb\r",
            " lead\nb",
            "trail \nb",
            "*x",
            "&x",
            "!x",
            "%x",
            "@x",
            "`x",
            "|",
            ">",
            "?",
            "? x",
            ":",
            "a:",
            "2024-01-01",
            "2024-01-01T00:00:00Z",
            "12:30:45",
            "1_000",
            "+1",
            "=",
            "<<",
            "y",
            "é",
            ".",
            "...",
            "---",
            "---a",
            "1Gi",
            "100m",
            "\\n",
            "'a\\b: c'",
            "\u{7f}",
            "1.2.3",
            ".inf",
            "0b1",
            "0o17",
            "off",
        ];
        for s in hard {
            let v = json!({"k": s, "l": [s, {"m": s}]});
            let text = write(&v);
            assert_eq!(parse(&text).unwrap(), [v], "{s:?} became\n{text}");
        }
    }
}
