//! maxSurge and maxUnavailable: percentages of spec.replicas, surge rounded up and
//! unavailability down; both zero would never move, so one Pod may then be unavailable.

use k8s_openapi::api::apps::v1::DeploymentSpec;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Kubernetes' default of both.
const DEFAULT_PERCENT: i64 = 25;

fn resolve(value: Option<&IntOrString>, replicas: i32, up: bool) -> i32 {
    let percent = match value {
        Some(IntOrString::Int(n)) => return (*n).max(0),
        Some(IntOrString::String(s)) => s.trim_end_matches('%').parse().unwrap_or(0).max(0),
        None => DEFAULT_PERCENT,
    };
    let scaled = percent.saturating_mul(i64::from(replicas.max(0)));
    let rounded = if up { scaled.saturating_add(99) / 100 } else { scaled / 100 };
    i32::try_from(rounded).unwrap_or(i32::MAX)
}

fn both(spec: &DeploymentSpec) -> (i32, i32) {
    let replicas = spec.replicas.unwrap_or(1);
    let strategy = spec.strategy.as_ref();
    if strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate") {
        return (0, 0);
    }
    let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
    let surge = resolve(rolling.and_then(|r| r.max_surge.as_ref()), replicas, true);
    let unavailable = resolve(rolling.and_then(|r| r.max_unavailable.as_ref()), replicas, false);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

/// Pods that may exist beyond spec.replicas during an update.
pub fn max_surge(spec: &DeploymentSpec) -> i32 {
    both(spec).0
}

/// Pods of spec.replicas that may be unavailable.
pub fn max_unavailable(spec: &DeploymentSpec) -> i32 {
    let replicas = spec.replicas.unwrap_or(1);
    if replicas == 0 { 0 } else { both(spec).1.min(replicas) }
}
