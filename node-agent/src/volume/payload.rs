//! What the files of a configMap, secret, downwardAPI or projected volume are. Pure.
use super::VolumeError;
use crate::runtime::spec::env::{Facts, Refs, field, resource};
use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, Volume};
use std::collections::BTreeMap;

/// Kubernetes' defaultMode.
const DEFAULT_MODE: i32 = 0o644;

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its bytes.
    pub data: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
}

/// Files by path relative to the volume.
pub type Payload = BTreeMap<String, File>;

/// What `volume` holds; `None` for volumes that are no payload.
pub fn of(volume: &Volume, pod: &Pod, refs: &Refs, facts: &Facts) -> Result<Option<Payload>, VolumeError> {
    let name = &volume.name;
    let mut out = Payload::new();
    let mut files = Files { volume: name, out: &mut out };
    if let Some(source) = &volume.config_map {
        let keys = source.items.as_deref();
        files.config_map(refs, &source.name, keys, source.default_mode, source.optional == Some(true))?;
    } else if let Some(source) = &volume.secret {
        let secret = source.secret_name.clone().unwrap_or_default();
        let keys = source.items.as_deref();
        files.secret(refs, &secret, keys, source.default_mode, source.optional == Some(true))?;
    } else if let Some(source) = &volume.downward_api {
        files.downward(source.items.as_deref().unwrap_or_default(), pod, facts, source.default_mode)?;
    } else if let Some(projected) = &volume.projected {
        let mode = projected.default_mode;
        for source in projected.sources.iter().flatten() {
            if let Some(s) = &source.config_map {
                files.config_map(refs, &s.name, s.items.as_deref(), mode, s.optional == Some(true))?;
            } else if let Some(s) = &source.secret {
                files.secret(refs, &s.name, s.items.as_deref(), mode, s.optional == Some(true))?;
            } else if let Some(s) = &source.downward_api {
                files.downward(s.items.as_deref().unwrap_or_default(), pod, facts, mode)?;
            } else {
                return Err(VolumeError::Unsupported(name.clone()));
            }
        }
    } else {
        return Ok(None);
    }
    Ok(Some(out))
}

struct Files<'a> {
    volume: &'a str,
    out: &'a mut Payload,
}

impl Files<'_> {
    fn config_map(
        &mut self,
        refs: &Refs,
        name: &str,
        items: Option<&[KeyToPath]>,
        mode: Option<i32>,
        optional: bool,
    ) -> Result<(), VolumeError> {
        let Some(cm) = refs.config_maps.get(name) else { return self.missing("configmap", name, optional) };
        self.pick("configmap", name, &config_map_data(cm), items, mode, optional)
    }

    fn secret(
        &mut self,
        refs: &Refs,
        name: &str,
        items: Option<&[KeyToPath]>,
        mode: Option<i32>,
        optional: bool,
    ) -> Result<(), VolumeError> {
        let Some(secret) = refs.secrets.get(name) else { return self.missing("secret", name, optional) };
        self.pick("secret", name, &secret_data(secret), items, mode, optional)
    }

    fn missing(&self, kind: &'static str, name: &str, optional: bool) -> Result<(), VolumeError> {
        if optional {
            return Ok(());
        }
        Err(VolumeError::Missing { volume: self.volume.to_owned(), kind, name: name.to_owned() })
    }

    fn pick(
        &mut self,
        kind: &'static str,
        name: &str,
        data: &BTreeMap<String, Vec<u8>>,
        items: Option<&[KeyToPath]>,
        mode: Option<i32>,
        optional: bool,
    ) -> Result<(), VolumeError> {
        let Some(items) = items else {
            for (key, value) in data {
                self.add(key, value.clone(), mode)?;
            }
            return Ok(());
        };
        for item in items {
            match data.get(&item.key) {
                Some(value) => self.add(&item.path, value.clone(), item.mode.or(mode))?,
                None if optional => {}
                None => {
                    return Err(VolumeError::MissingKey {
                        volume: self.volume.to_owned(),
                        kind,
                        name: name.to_owned(),
                        key: item.key.clone(),
                    });
                }
            }
        }
        Ok(())
    }

    fn downward(
        &mut self,
        items: &[DownwardAPIVolumeFile],
        pod: &Pod,
        facts: &Facts,
        mode: Option<i32>,
    ) -> Result<(), VolumeError> {
        for item in items {
            let value = match (&item.field_ref, &item.resource_field_ref) {
                (Some(r), _) => field(pod, &r.field_path, facts),
                (None, Some(r)) => {
                    let named = r.container_name.as_deref().unwrap_or_default();
                    let c = pod.spec.iter().flat_map(|s| &s.containers).find(|c| c.name == named);
                    c.and_then(|c| resource(c, &r.resource, r.divisor.as_ref().map(|q| q.0.as_str()), facts))
                }
                (None, None) => None,
            };
            let value = value.ok_or_else(|| VolumeError::MissingKey {
                volume: self.volume.to_owned(),
                kind: "field",
                name: pod.metadata.name.clone().unwrap_or_default(),
                key: item.path.clone(),
            })?;
            self.add(&item.path, value.into_bytes(), item.mode.or(mode))?;
        }
        Ok(())
    }

    fn add(&mut self, path: &str, data: Vec<u8>, mode: Option<i32>) -> Result<(), VolumeError> {
        let bad = path.is_empty()
            || path.starts_with('/')
            || path.starts_with("..")
            || path.split('/').any(|part| part == ".." || part.is_empty() || part == ".")
            || path.contains('\0');
        if bad {
            return Err(VolumeError::Path { volume: self.volume.to_owned(), path: path.to_owned() });
        }
        let mode = u32::try_from(mode.unwrap_or(DEFAULT_MODE)).unwrap_or(0o644) & 0o777;
        self.out.insert(path.to_owned(), File { data, mode });
        Ok(())
    }
}

fn config_map_data(cm: &ConfigMap) -> BTreeMap<String, Vec<u8>> {
    let text = cm.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    let binary = cm.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
    text.chain(binary).collect()
}

fn secret_data(secret: &Secret) -> BTreeMap<String, Vec<u8>> {
    secret.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())).collect()
}
