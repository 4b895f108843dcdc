#![allow(clippy::unwrap_used, missing_docs)]
use super::*;
use crate::controllers::testing::deployment;
use k8s_openapi::api::apps::v1::{DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

pub(crate) fn strategy(surge: IntOrString, unavailable: IntOrString) -> DeploymentStrategy {
    DeploymentStrategy {
        type_: Some("RollingUpdate".into()),
        rolling_update: Some(RollingUpdateDeployment { max_surge: Some(surge), max_unavailable: Some(unavailable) }),
    }
}

fn numbers(replicas: i32, surge: &str, unavailable: &str) -> (i32, i32) {
    let parse = |t: &str| match t.parse() {
        Ok(n) => IntOrString::Int(n),
        Err(_) => IntOrString::String(t.into()),
    };
    let mut spec = deployment("d", replicas, "1m").spec.unwrap();
    spec.strategy = Some(strategy(parse(surge), parse(unavailable)));
    (max_surge(&spec), max_unavailable(&spec))
}

#[test]
fn percentages_round_as_in_kubernetes() {
    assert_eq!(numbers(10, "25%", "25%"), (3, 2), "surge up, unavailability down");
    assert_eq!(numbers(3, "25%", "25%"), (1, 0));
    assert_eq!(numbers(1, "25%", "25%"), (1, 0));
    assert_eq!(numbers(4, "0", "0"), (0, 1), "both zero would never move");
    assert_eq!(numbers(4, "0%", "10%"), (0, 1), "10 % of 4 is 0, so both are zero");
    assert_eq!(numbers(4, "2", "7"), (2, 4), "no more than there are");
    assert_eq!(numbers(0, "25%", "25%"), (0, 0));
}

#[test]
fn templates_are_equal_but_for_the_hash_label() {
    let d = deployment("d", 1, "1m");
    let template = d.spec.unwrap().template;
    let mut with = template.clone();
    with.metadata.as_mut().unwrap().labels.as_mut().unwrap().insert(revision::HASH_LABEL.into(), "abc".into());
    let spec = k8s_openapi::api::apps::v1::ReplicaSetSpec { template: Some(with.clone()), ..Default::default() };
    assert!(revision::same_template(Some(&spec), &template));
    with.spec.as_mut().unwrap().containers[0].image = Some("other".into());
    let spec = k8s_openapi::api::apps::v1::ReplicaSetSpec { template: Some(with), ..Default::default() };
    assert!(!revision::same_template(Some(&spec), &template));
}
