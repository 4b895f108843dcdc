//! Field selectors: `metadata.name=x,spec.nodeName!=n`, over the fields that Kubernetes lets each
//! kind be selected by.

use super::SelectorError;
use crate::kind::Kind;
use crate::object::Object;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    field: String,
    value: String,
    negated: bool,
}

/// A field selector, ready to match. The empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<Term>,
}

impl FieldSelector {
    /// Reads the text; `\,`, `\=` and `\\` stand for the characters themselves.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let bad = |why: &str| SelectorError::Field { text: text.to_owned(), why: why.to_owned() };
        let mut terms = Vec::new();
        for part in split_terms(text) {
            if part.is_empty() {
                continue;
            }
            let (field, value, negated) =
                split_operator(part).ok_or_else(|| bad(&format!("{part:?} has no operator; use FIELD=VALUE")))?;
            let value = unescape(value).map_err(bad)?;
            terms.push(Term { field: field.trim().to_owned(), value, negated });
        }
        Ok(FieldSelector { terms })
    }

    /// Refuses fields that the kind cannot be selected by.
    pub fn check(&self, kind: Kind) -> Result<(), SelectorError> {
        let known = supported_fields(kind);
        match self.terms.iter().find(|t| !known.contains(&t.field.as_str())) {
            None => Ok(()),
            Some(t) => Err(SelectorError::FieldNotSupported {
                kind: kind.name(),
                field: t.field.clone(),
                supported: known.join(", "),
            }),
        }
    }

    /// Whether it matches every object.
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that the field must have, if the selector pins it: for the use of an index.
    pub fn required_value(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|t| !t.negated && t.field == field).map(|t| t.value.as_str())
    }

    /// Whether an object matches, whose fields `get` tells; an absent field is empty.
    pub fn matches<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.terms.iter().all(|t| (get(&t.field).unwrap_or_default() == t.value) != t.negated)
    }

    /// Whether the object matches.
    pub fn matches_object(&self, object: &Object) -> bool {
        if self.terms.is_empty() {
            return true;
        }
        let fields = fields_of(object);
        self.matches(|f| fields.iter().find(|(k, _)| *k == f).map(|(_, v)| v.as_str()))
    }
}

fn split_terms(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn split_operator(part: &str) -> Option<(&str, &str, bool)> {
    let i = part.find('=')?;
    if let Some(field) = part[..i].strip_suffix('!') {
        return Some((field, &part[i + 1..], true));
    }
    let value = &part[i + 1..];
    Some((&part[..i], value.strip_prefix('=').unwrap_or(value), false))
}

fn unescape(value: &str) -> Result<String, &'static str> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(e @ ('\\' | ',' | '=')) => out.push(e),
                _ => return Err("a backslash must be followed by a comma, '=' or a backslash"),
            },
            '=' => return Err("a value's '=' is written \"\\=\""),
            c => out.push(c),
        }
    }
    Ok(out)
}

/// Fields by which objects of the kind can be selected, as in Kubernetes.
pub fn supported_fields(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Namespace => &["metadata.name", "status.phase"],
        Kind::Node => &["metadata.name", "spec.unschedulable"],
        Kind::Pod => &[
            "metadata.name",
            "metadata.namespace",
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        Kind::ReplicaSet => &["metadata.name", "metadata.namespace", "status.replicas"],
        Kind::Deployment | Kind::NetworkPolicy | Kind::ConfigMap => &["metadata.name", "metadata.namespace"],
        Kind::Secret => &["metadata.name", "metadata.namespace", "type"],
        Kind::Event => &[
            "metadata.name",
            "metadata.namespace",
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
    }
}

/// The selectable fields of an object, without metadata.name and metadata.namespace when empty.
pub fn fields_of(object: &Object) -> Vec<(&'static str, String)> {
    let text = |o: &Option<String>| o.clone().unwrap_or_default();
    let mut out = vec![("metadata.name", object.name().to_owned())];
    if object.kind().namespaced() {
        out.push(("metadata.namespace", object.namespace().to_owned()));
    }
    match object {
        Object::Namespace(o) => {
            let phase = o.status.as_ref().and_then(|s| s.phase.clone());
            out.push(("status.phase", phase.unwrap_or_default()));
        }
        Object::Node(o) => {
            let off = o.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false);
            out.push(("spec.unschedulable", off.to_string()));
        }
        Object::Pod(o) => {
            if let Some(s) = &o.spec {
                out.push(("spec.nodeName", text(&s.node_name)));
                out.push(("spec.restartPolicy", text(&s.restart_policy)));
                out.push(("spec.schedulerName", text(&s.scheduler_name)));
                out.push(("spec.serviceAccountName", text(&s.service_account_name)));
                out.push(("spec.hostNetwork", s.host_network.unwrap_or(false).to_string()));
            }
            if let Some(s) = &o.status {
                out.push(("status.phase", text(&s.phase)));
                out.push(("status.podIP", text(&s.pod_ip)));
                out.push(("status.nominatedNodeName", text(&s.nominated_node_name)));
            }
        }
        Object::ReplicaSet(o) => {
            let n = o.status.as_ref().map_or(0, |s| s.replicas);
            out.push(("status.replicas", n.to_string()));
        }
        Object::Secret(o) => out.push(("type", text(&o.type_))),
        Object::Event(o) => {
            let i = &o.involved_object;
            out.push(("involvedObject.kind", text(&i.kind)));
            out.push(("involvedObject.namespace", text(&i.namespace)));
            out.push(("involvedObject.name", text(&i.name)));
            out.push(("involvedObject.uid", text(&i.uid)));
            out.push(("involvedObject.apiVersion", text(&i.api_version)));
            out.push(("involvedObject.resourceVersion", text(&i.resource_version)));
            out.push(("involvedObject.fieldPath", text(&i.field_path)));
            out.push(("reason", text(&o.reason)));
            out.push(("reportingComponent", text(&o.reporting_component)));
            let source = o.source.as_ref().and_then(|s| s.component.clone());
            let source = source.filter(|s| !s.is_empty());
            out.push(("source", source.unwrap_or_else(|| text(&o.reporting_component))));
            out.push(("type", text(&o.type_)));
        }
        Object::Deployment(_) | Object::NetworkPolicy(_) | Object::ConfigMap(_) => {}
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use serde_json::json;

    fn pod() -> Object {
        let v = json!({"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","namespace":"d"},
            "spec":{"containers":[],"nodeName":"n1"},"status":{"phase":"Running"}});
        Object::from_value(Kind::Pod, &v).unwrap().0
    }

    #[test]
    fn table() {
        for (text, want) in [
            ("", true),
            ("metadata.name=a", true),
            ("metadata.name==a,spec.nodeName=n1", true),
            ("spec.nodeName!=n1", false),
            ("status.phase!=Running", false),
            ("status.podIP=", true),
        ] {
            let s = FieldSelector::parse(text).unwrap();
            s.check(Kind::Pod).unwrap();
            assert_eq!(s.matches_object(&pod()), want, "{text}");
        }
    }

    #[test]
    fn every_supported_field_is_told() {
        let pod = pod();
        let told: Vec<&str> = fields_of(&pod).into_iter().map(|(f, _)| f).collect();
        for f in supported_fields(Kind::Pod) {
            assert!(told.contains(f), "{f}");
        }
    }

    #[test]
    fn refused() {
        assert!(FieldSelector::parse("metadata.name").is_err());
        assert!(FieldSelector::parse("a=b\\x").is_err());
        assert_eq!(FieldSelector::parse("a=b\\,c").unwrap().required_value("a"), Some("b,c"));
        let e = FieldSelector::parse("spec.foo=1").unwrap().check(Kind::Pod).unwrap_err();
        assert!(e.to_string().starts_with("field label not supported: spec.foo"), "{e}");
    }
}
