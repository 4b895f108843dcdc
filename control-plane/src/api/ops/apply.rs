//! Apply: create what is missing; else merge three ways: what was applied last, what is there,
//! and the new manifest. What was applied last is kept in kubectl's annotation.

use serde_json::Value;
use trellis_model::apply::{LAST_APPLIED, three_way};
use trellis_model::{Kind, Object};

use super::admit::{self, Part};
use super::create::place;
use super::modify::Edit;
use super::{Answer, ApiError, Call, Effect, Ops, Target, WRITE_ATTEMPTS, WriteOptions};
use crate::auth::{Caller, Verb};

struct Applied {
    kind: Kind,
    manifest: Value,
    text: String,
    warnings: Vec<String>,
}

impl Applied {
    /// The manifest with itself in the annotation.
    fn annotated(&self) -> Value {
        let mut value = self.manifest.clone();
        let note = Value::String(self.text.clone());
        match &mut value["metadata"]["annotations"] {
            Value::Object(all) => {
                all.insert(LAST_APPLIED.to_owned(), note);
            }
            other => *other = serde_json::json!({ LAST_APPLIED: note }),
        }
        value
    }
}

impl Edit for Applied {
    fn edit(&self, old: &Object) -> Result<(Object, Vec<String>), ApiError> {
        let annotations = old.meta().annotations.as_ref();
        let last = annotations.and_then(|a| a.get(LAST_APPLIED));
        // An annotation that somebody broke counts as none: nothing is then pruned.
        let last: Option<Value> = last.and_then(|text| serde_json::from_str(text).ok());
        let live = old.to_value();
        let merged = three_way(self.kind, last.as_ref(), &live, &self.annotated());
        let (object, _) = admit::read(self.kind, &merged)?;
        Ok((object, self.warnings.clone()))
    }

    fn revision(&self) -> Option<u64> {
        None
    }
}

impl Ops {
    /// Makes the object be as the manifest says.
    ///
    /// # Errors
    /// Those of [`Ops::create`] and [`Ops::update`].
    pub async fn apply(
        &self,
        caller: &Caller,
        target: &Target,
        json: &[u8],
        options: &WriteOptions,
    ) -> Result<Answer, ApiError> {
        let mut manifest = admit::parse_json(target, json)?;
        forget_server_fields(&mut manifest);
        let (mut object, warnings) = admit::read(target.kind, &manifest)?;
        let target = &place(&mut object, target)?;
        if target.name.is_empty() {
            let message = "apply needs metadata.name: with generateName use create";
            return Err(ApiError::BadRequest(message.into()));
        }
        manifest["metadata"]["name"] = target.name.clone().into();
        if target.kind.namespaced() {
            manifest["metadata"]["namespace"] = target.namespace.clone().into();
        }
        let text = format!("{manifest}\n");
        let edit = Applied { kind: target.kind, manifest, text, warnings };
        self.backend().read_barrier().await?;
        for _ in 0..WRITE_ATTEMPTS {
            if self.store().get(&target.key()).is_none() {
                match self.apply_new(caller, target, &edit, options).await {
                    // Somebody made it meanwhile: merge into theirs.
                    Err(ApiError::AlreadyExists { .. }) => {
                        self.backend().read_barrier().await?;
                    }
                    other => return other,
                }
            }
            let call = Call { caller, target, options };
            match self.modify(&call, Part::Main, &edit).await {
                // Somebody removed it meanwhile: make it anew.
                Err(ApiError::NotFound { .. }) => {}
                other => return other,
            }
        }
        Err(ApiError::modified(target.kind, &target.name))
    }

    async fn apply_new(
        &self,
        caller: &Caller,
        target: &Target,
        edit: &Applied,
        options: &WriteOptions,
    ) -> Result<Answer, ApiError> {
        let (object, _) = admit::read(target.kind, &edit.annotated())?;
        self.rule(caller, Verb::Create, target)?;
        let mut answer = self.create_object(caller, target, object, options).await?;
        answer.effect = Effect::Created;
        answer.warnings.clone_from(&edit.warnings);
        Ok(answer)
    }
}

/// A manifest got with `get -o yaml` carries what the server wrote: not the person's wish.
fn forget_server_fields(manifest: &mut Value) {
    let Some(all) = manifest.as_object_mut() else { return };
    all.shift_remove("status");
    let Some(meta) = all.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    for field in [
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "managedFields",
        "selfLink",
    ] {
        meta.shift_remove(field);
    }
    if let Some(annotations) = meta.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.shift_remove(LAST_APPLIED);
    }
}
