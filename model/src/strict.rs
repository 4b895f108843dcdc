//! Decoding that remembers where it is: a wrong type is told with its field's path, and fields
//! that the type does not know are collected instead of dropped.
//!
//! The types' own `Deserialize` tell us the schema: an unknown field is what they ask to ignore.

use std::cell::RefCell;

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};
use serde_json::Value;

/// A value that does not fit its field.
#[derive(Debug)]
pub struct StrictError {
    /// Path of the field, `(root)` for the document itself.
    pub field: String,
    /// What the type expected.
    pub message: String,
    /// The same path as a JSON pointer's parts.
    pointer: Vec<String>,
}

impl std::fmt::Display for StrictError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}
impl std::error::Error for StrictError {}

impl de::Error for StrictError {
    fn custom<T: std::fmt::Display>(msg: T) -> Self {
        StrictError { field: String::new(), message: msg.to_string(), pointer: Vec::new() }
    }
}

/// Decodes `value`; beside it the paths of unknown fields, sorted.
pub fn decode<T: DeserializeOwned>(value: &Value) -> Result<(T, Vec<String>), StrictError> {
    let walk = Walk::default();
    let object = T::deserialize(At { value, walk: &walk }).map_err(|mut e| {
        if e.field.is_empty() {
            e.field = "(root)".to_owned();
        }
        e
    })?;
    let mut unknown = walk.unknown.into_inner();
    unknown.sort();
    Ok((object, unknown))
}

/// Every value of a wrong type, not the first alone: each one found is taken for absent, and the
/// rest read again.
pub fn errors<T: DeserializeOwned>(value: &Value) -> Vec<StrictError> {
    let mut rest = value.clone();
    let mut found: Vec<StrictError> = Vec::new();
    while found.len() < MAX_ERRORS {
        let Err(e) = decode::<T>(&rest) else { break };
        let mut pointer = e.pointer.clone();
        // Where null will not do either, what holds it is left out.
        while !pointer.is_empty() && at(&mut rest, &pointer).is_none_or(|v| v.is_null()) {
            pointer.pop();
        }
        let Some(bad) = at(&mut rest, &pointer).filter(|_| !pointer.is_empty()) else {
            found.extend(found.is_empty().then_some(e));
            break;
        };
        *bad = Value::Null;
        if pointer == e.pointer {
            found.push(e);
        }
    }
    found
}

/// Nobody reads more at once.
const MAX_ERRORS: usize = 64;

fn at<'v>(value: &'v mut Value, pointer: &[String]) -> Option<&'v mut Value> {
    pointer.iter().try_fold(value, |v, step| match v {
        Value::Object(m) => m.get_mut(step),
        Value::Array(a) => step.parse::<usize>().ok().and_then(|i| a.get_mut(i)),
        _ => None,
    })
}

#[derive(Clone, Copy)]
enum Step<'de> {
    Field(&'de str),
    Index(usize),
}

/// Where the decoding stands, and what it has found. The path becomes text only when it is told.
#[derive(Default)]
struct Walk<'de> {
    path: RefCell<Vec<Step<'de>>>,
    unknown: RefCell<Vec<String>>,
}

impl Walk<'_> {
    fn pointer(&self) -> Vec<String> {
        let step = |s: &Step<'_>| match s {
            Step::Field(name) => (*name).to_owned(),
            Step::Index(i) => i.to_string(),
        };
        self.path.borrow().iter().map(step).collect()
    }

    fn text(&self) -> String {
        let mut out = String::new();
        for step in self.path.borrow().iter() {
            match step {
                Step::Field(name) => {
                    if !out.is_empty() {
                        out.push('.');
                    }
                    out.push_str(name);
                }
                Step::Index(i) => {
                    out.push('[');
                    out.push_str(&i.to_string());
                    out.push(']');
                }
            }
        }
        out
    }
}

#[derive(Clone, Copy)]
struct At<'w, 'de> {
    value: &'de Value,
    walk: &'w Walk<'de>,
}

impl<'de> At<'_, 'de> {
    fn located(&self, mut e: StrictError) -> StrictError {
        if e.field.is_empty() {
            e.field = self.walk.text();
            e.pointer = self.walk.pointer();
        }
        e
    }

    fn descend<T: DeserializeSeed<'de>>(
        &self,
        step: Step<'de>,
        value: &'de Value,
        seed: T,
    ) -> Result<T::Value, StrictError> {
        self.walk.path.borrow_mut().push(step);
        let child = At { value, walk: self.walk };
        let result = seed.deserialize(child).map_err(|e| child.located(e));
        self.walk.path.borrow_mut().pop();
        result
    }
}

impl<'de> Deserializer<'de> for At<'_, 'de> {
    type Error = StrictError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, StrictError> {
        let result = match self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(b) => visitor.visit_bool(*b),
            Value::Number(n) => {
                if let Some(i) = n.as_i64() {
                    visitor.visit_i64(i)
                } else if let Some(u) = n.as_u64() {
                    visitor.visit_u64(u)
                } else {
                    visitor.visit_f64(n.as_f64().unwrap_or(f64::NAN))
                }
            }
            Value::String(s) => visitor.visit_str(s),
            Value::Array(items) => visitor.visit_seq(Items { at: self, items, next: 0 }),
            Value::Object(map) => visitor.visit_map(Fields { at: self, entries: map.iter(), current: None }),
        };
        result.map_err(|e| self.located(e))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, StrictError> {
        match self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, StrictError> {
        // k8s-openapi's Quantity and IntOrString take the scalar itself, its other wrappers
        // another type.
        if matches!(name, "Quantity" | "IntOrString") {
            return self.deserialize_any(visitor);
        }
        visitor.visit_newtype_struct(self).map_err(|e| self.located(e))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, StrictError> {
        self.walk.unknown.borrow_mut().push(self.walk.text());
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct enum identifier
    }
}

struct Items<'w, 'de> {
    at: At<'w, 'de>,
    items: &'de [Value],
    next: usize,
}

impl<'de> SeqAccess<'de> for Items<'_, 'de> {
    type Error = StrictError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, StrictError> {
        let Some(value) = self.items.get(self.next) else { return Ok(None) };
        let step = Step::Index(self.next);
        self.next += 1;
        self.at.descend(step, value, seed).map(Some)
    }
}

struct Fields<'w, 'de> {
    at: At<'w, 'de>,
    entries: serde_json::map::Iter<'de>,
    current: Option<(&'de str, &'de Value)>,
}

impl<'de> MapAccess<'de> for Fields<'_, 'de> {
    type Error = StrictError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, StrictError> {
        let Some((key, value)) = self.entries.next() else { return Ok(None) };
        self.current = Some((key, value));
        seed.deserialize(key.as_str().into_deserializer()).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, StrictError> {
        let Some((key, value)) = self.current.take() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        self.at.descend(Step::Field(key), value, seed)
    }
}
