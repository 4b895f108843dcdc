//! The two strategies.

use super::{Rollout, max_surge, max_unavailable, revision, scaling, status};

/// How many Pods the new ReplicaSet may have now.
pub(crate) fn new_size(r: &Rollout<'_>) -> i32 {
    let present = r.new.as_ref().map_or(0, |w| w.replicas());
    let wanted = r.wanted();
    if r.recreates() || present >= wanted {
        return wanted;
    }
    let possible: i32 = r.all().map(|w| w.possible()).sum();
    let room = wanted + max_surge(&r.spec) - possible;
    present + room.clamp(0, wanted - present)
}

/// RollingUpdate: first up, then down, one of them a plan.
pub(crate) fn roll(r: &mut Rollout<'_>) {
    let size = new_size(r);
    if r.new.is_none() {
        revision::create(r, size);
        return;
    }
    revision::sync_existing(r);
    let before = r.new.as_ref().map_or(0, |w| w.replicas());
    if size != before {
        scaling::resize_new(r, size);
        return;
    }
    scale_down_old(r);
    if status::complete(r) {
        revision::clean_up(r);
    }
}

fn scale_down_old(r: &mut Rollout<'_>) {
    let min_available = r.wanted() - max_unavailable(&r.spec);
    let all: i32 = r.all().map(|w| w.replicas()).sum();
    let new_unavailable = r.new.as_ref().map_or(0, |w| w.replicas() - w.available());
    let may_go = all - min_available - new_unavailable;
    if may_go <= 0 {
        return;
    }
    // Unhealthy old Pods go first: they hold places, but serve nobody.
    let mut cleaned = 0;
    for i in 0..r.old.len() {
        let w = &r.old[i];
        let unhealthy = w.replicas() - w.available();
        let step = unhealthy.min(may_go - cleaned);
        if step > 0 {
            scaling::resize_old(r, i, r.old[i].replicas() - step);
            cleaned += step;
        }
    }
    let available: i32 = r.all().map(|w| w.available()).sum();
    let mut surplus = (available - min_available).min(may_go - cleaned);
    for i in 0..r.old.len() {
        let step = r.old[i].replicas().min(surplus);
        if step > 0 {
            scaling::resize_old(r, i, r.old[i].replicas() - step);
            surplus -= step;
        }
    }
}

/// Recreate: nothing new before the last old Pod is gone.
pub(crate) fn recreate(r: &mut Rollout<'_>) {
    revision::sync_existing(r);
    let mut lowered = false;
    for i in 0..r.old.len() {
        if r.old[i].replicas() > 0 {
            scaling::resize_old(r, i, 0);
            lowered = true;
        }
    }
    if lowered || r.old.iter().any(|w| w.living > 0 || w.possible() > 0) {
        return;
    }
    let wanted = r.wanted();
    match &r.new {
        None => revision::create(r, wanted),
        Some(new) if new.replicas() != wanted => scaling::resize_new(r, wanted),
        Some(_) => {
            if status::complete(r) {
                revision::clean_up(r);
            }
        }
    }
}
