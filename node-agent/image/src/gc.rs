//! Image garbage collection, as a kubelet does it: when the file system is fuller than one
//! threshold, images that no Pod uses go, the least recently used first, until it is below
//! another; images unused for very long go anyway, where that is wanted.
//!
//! An image that was imported stays as long as it has a name: no registry need have it, and a Pod
//! that fails over to this node would never start. It goes when its name moves to a newer one.
//!
//! [`plan`] decides and is pure; [`ImageStore::collect`] measures, removes, and measures again.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::{ImageError, ImageStore};

/// When images go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Used share of the file system from which images are removed (kubelet: 85).
    pub high_percent: u8,
    /// Used share that is aimed at then (kubelet: 80).
    pub low_percent: u8,
    /// An image that came or was used within this time stays whatever happens (kubelet: 2 min).
    pub min_age: Duration,
    /// An image that nobody has used for this long goes, full or not (kubelet: never).
    pub max_age: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { high_percent: 85, low_percent: 80, min_age: Duration::from_secs(120), max_age: None }
    }
}

/// A file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its size.
    pub capacity_bytes: u64,
    /// What is left for an ordinary user.
    pub available_bytes: u64,
}

impl Disk {
    /// In percent, rounded down as a kubelet does.
    #[must_use]
    pub fn used_percent(&self) -> u8 {
        let used = self.capacity_bytes.saturating_sub(self.available_bytes);
        u8::try_from(u128::from(used) * 100 / u128::from(self.capacity_bytes.max(1))).unwrap_or(100)
    }

    fn missing_bytes(&self, low_percent: u8) -> u64 {
        let wanted = u128::from(self.capacity_bytes) * u128::from(100 - low_percent.min(100)) / 100;
        u64::try_from(wanted).unwrap_or(u64::MAX).saturating_sub(self.available_bytes)
    }
}

/// An image as the plan sees it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Digest of its configuration.
    pub id: String,
    /// Diff id and size of each layer; images share layers.
    pub layers: Vec<(String, u64)>,
    /// A Pod of this node refers to it, or nobody could bring it back.
    pub in_use: bool,
    /// Since it came, or a container was last started from it.
    pub unused_for: Duration,
}

/// What to remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Ids, in this order.
    pub remove: Vec<String>,
    /// What that frees: layers that another image needs do not count.
    pub freed_bytes: u64,
    /// What is still missing then.
    pub missing_bytes: u64,
}

/// Decides what goes.
#[must_use]
pub fn plan(disk: Disk, limits: &Limits, images: &[Candidate]) -> Plan {
    let full = disk.used_percent() >= limits.high_percent;
    let wanted = if full { disk.missing_bytes(limits.low_percent) } else { 0 };
    let mut users: BTreeMap<&str, usize> = BTreeMap::new();
    for (layer, _) in images.iter().flat_map(unique_layers) {
        *users.entry(layer).or_default() += 1;
    }
    let mut idle: Vec<&Candidate> = images.iter().filter(|i| !i.in_use && i.unused_for >= limits.min_age).collect();
    // By id besides, so that equal ages give the same plan twice.
    idle.sort_by(|a, b| b.unused_for.cmp(&a.unused_for).then_with(|| a.id.cmp(&b.id)));
    let mut plan = Plan::default();
    for image in idle {
        let expired = limits.max_age.is_some_and(|max| image.unused_for >= max);
        if !expired && plan.freed_bytes >= wanted {
            continue;
        }
        for (layer, bytes) in unique_layers(image) {
            let left = users.entry(layer).or_default();
            *left = left.saturating_sub(1);
            if *left == 0 {
                plan.freed_bytes += bytes;
            }
        }
        plan.remove.push(image.id.clone());
    }
    plan.missing_bytes = wanted.saturating_sub(plan.freed_bytes);
    plan
}

/// An image may name one layer twice.
fn unique_layers(image: &Candidate) -> BTreeMap<&str, u64> {
    image.layers.iter().map(|(layer, bytes)| (layer.as_str(), *bytes)).collect()
}

/// What a collection did.
#[derive(Clone, Debug)]
pub struct Collected {
    /// A name (or the id) of each image that went.
    pub removed: Vec<String>,
    /// The file system before.
    pub before: Disk,
    /// And after.
    pub after: Disk,
    /// What could not be freed of what should have been.
    pub missing_bytes: u64,
}

impl ImageStore {
    /// Removes what the limits say. `in_use` answers the ids of the images that Pods of this node
    /// refer to; it is asked only when something may go. Blocking.
    ///
    /// # Errors
    /// The disk's.
    pub fn collect(&self, limits: &Limits, in_use: impl FnOnce() -> BTreeSet<String>) -> Result<Collected, ImageError> {
        let before = self.disk()?;
        let mut done = Collected { removed: Vec::new(), before, after: before, missing_bytes: 0 };
        if before.used_percent() < limits.high_percent && limits.max_age.is_none() {
            return Ok(done);
        }
        let as_of = Instant::now();
        let used = in_use();
        let mut names = BTreeMap::new();
        let mut candidates = Vec::new();
        for (image, last_use) in self.uses()? {
            let layers = image.layers.iter().map(|l| l.display().to_string()).zip(image.layer_bytes.iter().copied());
            candidates.push(Candidate {
                in_use: used.contains(&image.id) || (image.imported && !image.names.is_empty()),
                layers: layers.collect(),
                unused_for: as_of.saturating_duration_since(last_use),
                id: image.id.clone(),
            });
            names.insert(image.id.clone(), image.names.first().cloned().unwrap_or(image.id));
        }
        let plan = plan(before, limits, &candidates);
        // Whoever began to use one since then keeps it.
        let gone = self.remove(&plan.remove, as_of)?;
        done.removed = gone.iter().map(|id| names.remove(id).unwrap_or_else(|| id.clone())).collect();
        done.after = self.disk()?;
        if before.used_percent() >= limits.high_percent {
            done.missing_bytes = done.after.missing_bytes(limits.low_percent);
        }
        Ok(done)
    }

    fn disk(&self) -> Result<Disk, ImageError> {
        let stat =
            rustix::fs::statvfs(&self.shared.folder).map_err(|e| ImageError::io(&self.shared.folder)(e.into()))?;
        Ok(Disk { capacity_bytes: stat.f_blocks * stat.f_frsize, available_bytes: stat.f_bavail * stat.f_frsize })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn image(id: &str, layers: &[(&str, u64)], in_use: bool, unused_secs: u64) -> Candidate {
        Candidate {
            id: id.to_owned(),
            layers: layers.iter().map(|(l, b)| ((*l).to_owned(), *b)).collect(),
            in_use,
            unused_for: Duration::from_secs(unused_secs),
        }
    }

    fn disk(used: u64) -> Disk {
        Disk { capacity_bytes: 1000, available_bytes: 1000 - used }
    }

    #[test]
    fn below_the_threshold_nothing_goes() {
        let all = [image("a", &[("l", 500)], false, 9999)];
        assert_eq!(plan(disk(849), &Limits::default(), &all), Plan::default());
        assert_eq!(plan(disk(850), &Limits::default(), &all).remove, ["a"]);
    }

    #[test]
    fn the_least_recently_used_goes_first_and_no_more_than_needed() {
        let all = [
            image("new", &[("n", 40)], false, 200),
            image("old", &[("o", 40)], false, 900),
            image("older", &[("p", 40)], false, 1000),
            image("used", &[("u", 400)], true, 5000),
            image("fresh", &[("f", 400)], false, 119),
        ];
        let plan = plan(disk(860), &Limits::default(), &all);
        assert_eq!((plan.remove, plan.freed_bytes, plan.missing_bytes), (vec!["older".into(), "old".into()], 80, 0));
    }

    #[test]
    fn a_shared_layer_frees_nothing_until_its_last_image_goes() {
        let all = [image("a", &[("base", 300), ("a", 10)], false, 900), image("b", &[("base", 300)], true, 900)];
        let plan = plan(disk(900), &Limits::default(), &all);
        assert_eq!((plan.remove.len(), plan.freed_bytes, plan.missing_bytes), (1, 10, 90));
    }

    #[test]
    fn what_nobody_used_for_long_goes_where_that_is_wanted() {
        let limits = Limits { max_age: Some(Duration::from_secs(3600)), ..Limits::default() };
        let all =
            [image("a", &[("a", 1)], false, 3600), image("b", &[("b", 1)], false, 3599), image("c", &[], true, 9999)];
        assert_eq!(plan(disk(10), &limits, &all).remove, ["a"]);
        assert_eq!(plan(disk(10), &Limits::default(), &all).remove, Vec::<String>::new());
    }

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (prop::collection::vec(0u8..6, 0..4), any::<bool>(), 0u64..600);
        prop::collection::vec(one, 0..12).prop_map(|all| {
            let candidate = |(n, (layers, in_use, secs)): (usize, (Vec<u8>, bool, u64))| {
                let layers: Vec<(String, u64)> =
                    layers.into_iter().map(|l| (format!("l{l}"), 10 * (u64::from(l) + 1))).collect();
                Candidate { id: format!("i{n}"), layers, in_use, unused_for: Duration::from_secs(secs) }
            };
            all.into_iter().enumerate().map(candidate).collect()
        })
    }

    proptest! {
        #[test]
        fn used_and_young_images_stay_and_a_second_plan_finds_no_more(all in candidates(), used in 0u64..=1000) {
            let limits = Limits::default();
            let first = plan(disk(used), &limits, &all);
            for id in &first.remove {
                let image = all.iter().find(|i| i.id == *id).unwrap();
                prop_assert!(!image.in_use && image.unused_for >= limits.min_age);
            }
            let left: Vec<Candidate> = all.iter().filter(|i| !first.remove.contains(&i.id)).cloned().collect();
            let freed = |images: &[Candidate]| -> u64 {
                images.iter().flat_map(unique_layers).collect::<BTreeMap<_, _>>().values().sum()
            };
            prop_assert_eq!(first.freed_bytes, freed(&all) - freed(&left));
            let after = disk(used.saturating_sub(first.freed_bytes));
            let second = plan(after, &limits, &left);
            prop_assert!(second.remove.is_empty(), "{:?} then {:?}", first, second);
            // What remains idle is needed for nothing.
            let idle = left.iter().any(|i| !i.in_use && i.unused_for >= limits.min_age);
            prop_assert!(!idle || first.missing_bytes == 0);
        }
    }
}
