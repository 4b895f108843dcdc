//! Changes of spec.replicas: spread over the ReplicaSets in proportion to their sizes, so that
//! a rollout in progress keeps its risk.

use k8s_openapi::api::apps::v1::ReplicaSet;

use super::{Rollout, Working, max_surge, revision};

/// Whether a ReplicaSet with Pods was last scaled for another spec.replicas.
pub(crate) fn is_scaling(r: &Rollout<'_>) -> bool {
    let wanted = r.wanted().to_string();
    r.all()
        .filter(|w| w.replicas() > 0)
        .any(|w| revision::annotation(&w.item.object, revision::DESIRED).is_some_and(|d| d != wanted))
}

/// Gives the new ReplicaSet a size.
pub(crate) fn resize_new(r: &mut Rollout<'_>, size: i32) {
    let (desired, max) = sizes(r);
    let Some(mut new) = r.new.take() else { return };
    tell(r, &new, size);
    resize(&mut new.next, size, desired, max);
    r.new = Some(new);
}

/// Gives an old ReplicaSet a size.
pub(crate) fn resize_old(r: &mut Rollout<'_>, index: usize, size: i32) {
    let (desired, max) = sizes(r);
    let mut old = r.old[index].clone();
    tell(r, &old, size);
    resize(&mut old.next, size, desired, max);
    r.old[index] = old;
}

fn sizes(r: &Rollout<'_>) -> (i32, i32) {
    (r.wanted(), r.wanted() + max_surge(&r.spec))
}

fn resize(set: &mut ReplicaSet, size: i32, desired: i32, max: i32) {
    if let Some(spec) = &mut set.spec {
        spec.replicas = Some(size);
    }
    revision::set_sizes(set, desired, max);
}

fn tell(r: &mut Rollout<'_>, set: &Working, size: i32) {
    let before = set.replicas();
    if size != before {
        let way = if size > before { "up" } else { "down" };
        let name = set.name().to_owned();
        r.note("ScalingReplicaSet", format!("Scaled {way} replica set {name} from {before} to {size}"));
    }
}

/// Brings the ReplicaSets to spec.replicas without moving the rollout on.
pub(crate) fn scale(r: &mut Rollout<'_>) {
    let active: Vec<usize> = (0..r.old.len()).filter(|i| r.old[*i].replicas() > 0).collect();
    let new_active = r.new.as_ref().is_some_and(|w| w.replicas() > 0);
    let wanted = r.wanted();
    match (active.as_slice(), new_active) {
        ([], _) if r.new.is_some() => resize_new(r, wanted),
        ([], _) => {
            if let Some(latest) = r.old.len().checked_sub(1) {
                resize_old(r, latest, wanted);
            }
        }
        ([only], false) => resize_old(r, *only, wanted),
        _ if saturated(r) => {
            for i in active {
                resize_old(r, i, 0);
            }
            resize_new(r, wanted);
        }
        _ if !r.recreates() => proportionally(r, &active),
        _ => {}
    }
}

/// Whether the new ReplicaSet has all the Pods of the Deployment, all of them available.
fn saturated(r: &Rollout<'_>) -> bool {
    let Some(new) = &r.new else { return false };
    let desired = revision::annotation(&new.item.object, revision::DESIRED).and_then(|d| d.parse::<i32>().ok());
    let available = new.item.object.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0);
    new.replicas() == r.wanted() && desired == Some(r.wanted()) && available == r.wanted()
}

fn proportionally(r: &mut Rollout<'_>, active_old: &[usize]) {
    // None stands for the new one.
    let mut sets: Vec<Option<usize>> = active_old.iter().copied().map(Some).collect();
    if r.new.as_ref().is_some_and(|w| w.replicas() > 0) {
        sets.push(None);
    }
    let size = |r: &Rollout<'_>, s: Option<usize>| match s {
        Some(i) => r.old[i].replicas(),
        None => r.new.as_ref().map_or(0, Working::replicas),
    };
    let allowed = if r.wanted() > 0 { r.wanted() + max_surge(&r.spec) } else { 0 };
    let to_add = allowed - sets.iter().map(|s| size(r, *s)).sum::<i32>();
    // The biggest first; of equals the newest when growing, the oldest when shrinking. `sets`
    // is in order of age, and the sort is stable.
    if to_add > 0 {
        sets.reverse();
    }
    sets.sort_by_key(|s| std::cmp::Reverse(size(r, *s)));
    let mut added = 0;
    let mut targets = Vec::new();
    for s in &sets {
        let part = fraction(r, *s, size(r, *s));
        let left = to_add - added;
        let part = if to_add > 0 { part.clamp(0, left) } else { part.clamp(left, 0) };
        added += part;
        targets.push(size(r, *s) + part);
    }
    if let Some(first) = targets.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    for (s, target) in sets.into_iter().zip(targets) {
        match s {
            Some(i) => resize_old(r, i, target),
            None => resize_new(r, target),
        }
    }
}

/// By how much a ReplicaSet would change if only its share counted.
fn fraction(r: &Rollout<'_>, set: Option<usize>, size: i32) -> i32 {
    if r.wanted() == 0 {
        return -size;
    }
    let item = match set {
        Some(i) => &r.old[i].item.object,
        None => match &r.new {
            Some(w) => &w.item.object,
            None => return 0,
        },
    };
    let before = revision::annotation(item, revision::MAX).and_then(|m| m.parse::<i64>().ok()).filter(|m| *m > 0);
    let before = before.or_else(|| {
        let status = r.deployment.object.status.as_ref();
        status.and_then(|s| s.replicas).map(i64::from).filter(|m| *m > 0)
    });
    let Some(before) = before else { return 0 };
    let target = i64::from(size) * i64::from(r.wanted() + max_surge(&r.spec));
    // Rounded to the nearest, halves up: both are positive.
    let rounded = (2 * target + before) / (2 * before);
    i32::try_from(rounded).unwrap_or(i32::MAX) - size
}
