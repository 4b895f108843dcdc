//! The pod-template-hash of a ReplicaSet: the same template gives the same hash on any member, in
//! any release.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::Value;

use crate::names::SAFE_ALPHABET;

/// Hash of a Pod template, in Kubernetes' safe alphabet. `collisions` is the Deployment's
/// `status.collisionCount`: it makes another hash after two templates have met in one.
pub fn pod_template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    // Through Value with sorted keys: neither a field's place in the type nor the order in which
    // a map was written may matter.
    let mut text = String::new();
    canonical(&serde_json::to_value(template).unwrap_or_default(), &mut text);
    let mut hash = fnv1a(0x811c_9dc5, text.as_bytes());
    if let Some(n) = collisions {
        hash = fnv1a(hash, &n.to_le_bytes());
    }
    safe_encode(&hash.to_string())
}

/// FNV-1a with 32 bits, as Kubernetes uses for the same purpose.
fn fnv1a(start: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(start, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193))
}

/// Kubernetes' `rand.SafeEncodeString`.
fn safe_encode(text: &str) -> String {
    text.bytes().map(|b| char::from(SAFE_ALPHABET[usize::from(b) % SAFE_ALPHABET.len()])).collect()
}

fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            out.push('{');
            for k in keys {
                out.push_str(&Value::String(k.clone()).to_string());
                out.push(':');
                canonical(&map[k], out);
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for i in items {
                canonical(i, out);
                out.push(',');
            }
            out.push(']');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use serde_json::json;

    fn template(v: Value) -> PodTemplateSpec {
        serde_json::from_value(v).unwrap()
    }

    #[test]
    fn stable_and_sensitive() {
        let a =
            template(json!({"metadata":{"labels":{"a":"1","b":"2"}},"spec":{"containers":[{"name":"c","image":"x"}]}}));
        let b =
            template(json!({"spec":{"containers":[{"image":"x","name":"c"}]},"metadata":{"labels":{"b":"2","a":"1"}}}));
        let c = template(json!({"spec":{"containers":[{"image":"y","name":"c"}]}}));
        assert_eq!(pod_template_hash(&a, None), pod_template_hash(&b, None));
        assert_ne!(pod_template_hash(&a, None), pod_template_hash(&c, None));
        assert_ne!(pod_template_hash(&a, None), pod_template_hash(&a, Some(1)));
        // Pinned: a changed hash would replace every Pod of every Deployment on upgrade.
        assert_eq!(pod_template_hash(&c, None), PINNED);
        assert!(pod_template_hash(&a, None).bytes().all(|b| SAFE_ALPHABET.contains(&b)));
    }

    const PINNED: &str = "655c8594cb";
}
