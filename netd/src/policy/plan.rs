//! From what the kernel has to what it should have.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use trellis_model::policy::Rules;

use super::{AddressRanges, Direction, FORWARD, LOCAL, Rule, Ruleset, TABLE};

/// What a set or map in the kernel holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetContent {
    /// Addresses.
    Addresses(AddressRanges),
    /// Address to chain.
    Verdicts(BTreeMap<Ipv4Addr, String>),
}

/// The table as it is in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ActualTable {
    /// Each chain's rules, by [`Rule::tag`]; a rule that is not ours has an empty one.
    pub chains: BTreeMap<String, Vec<String>>,
    /// Sets and maps.
    pub sets: BTreeMap<String, SetContent>,
}

/// One change. All steps of a plan are one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Throw the table away and write it anew.
    Rebuild(Box<Ruleset>),
    /// A new set of peers.
    AddSet(String, AddressRanges),
    /// A new chain with its rules.
    AddChain(String, Vec<Rule>),
    /// Elements that leave a map or the set of local addresses.
    RemoveElements(String, BTreeMap<Ipv4Addr, Option<String>>),
    /// Elements that enter one.
    AddElements(String, BTreeMap<Ipv4Addr, Option<String>>),
    /// A chain that nothing refers to any more.
    DeleteChain(String),
    /// A set that nothing refers to any more.
    DeleteSet(String),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rebuild(ruleset) => {
                write!(f, "rebuild table inet {TABLE} ({} chains, {} sets)", ruleset.chains.len(), ruleset.sets.len())
            }
            Self::AddSet(name, ranges) => write!(f, "add set inet {TABLE} {name} {{ {ranges} }}"),
            Self::AddChain(name, rules) => {
                write!(f, "add chain inet {TABLE} {name} {{")?;
                for rule in rules {
                    write!(f, " {rule};")?;
                }
                f.write_str(" }")
            }
            Self::RemoveElements(set, elements) => write!(f, "delete element inet {TABLE} {set} {elements:?}"),
            Self::AddElements(set, elements) => write!(f, "add element inet {TABLE} {set} {elements:?}"),
            Self::DeleteChain(name) => write!(f, "delete chain inet {TABLE} {name}"),
            Self::DeleteSet(name) => write!(f, "delete set inet {TABLE} {name}"),
        }
    }
}

impl ActualTable {
    /// How the kernel looks once this ruleset is in it.
    pub fn of(ruleset: &Ruleset) -> Self {
        let mut sets: BTreeMap<String, SetContent> =
            ruleset.sets.iter().map(|(name, ranges)| (name.clone(), SetContent::Addresses(ranges.clone()))).collect();
        sets.insert(LOCAL.into(), SetContent::Addresses(local_ranges(&ruleset.local)));
        for (name, elements) in &ruleset.maps {
            sets.insert(name.clone(), SetContent::Verdicts(elements.clone()));
        }
        let chains =
            ruleset.chains.iter().map(|(name, rules)| (name.clone(), rules.iter().map(Rule::tag).collect())).collect();
        Self { chains, sets }
    }
}

fn local_ranges(local: &BTreeSet<Ipv4Addr>) -> AddressRanges {
    let ranges = local.iter().map(|ip| (u32::from(*ip), u32::from(*ip))).collect();
    AddressRanges::from_ranges(ranges, true)
}

/// What to do; empty when the kernel is as it should be.
pub fn plan(desired: &Ruleset, actual: Option<&ActualTable>) -> Vec<Step> {
    plan_keeping(desired, actual, &BTreeSet::new())
}

/// As [`plan`], but for Pods whose policy in the kernel may be newer than what is desired: an
/// isolation of theirs that is there stays as it is, one that is missing is added.
pub fn plan_keeping(desired: &Ruleset, actual: Option<&ActualTable>, kept: &BTreeSet<Ipv4Addr>) -> Vec<Step> {
    let Some(found) = actual else { return rebuild(desired, None, kept) };
    let (target, actual) = (target(desired, found, kept), found);
    if *actual == target {
        return Vec::new();
    }
    if !is_sound(&target, actual) {
        return rebuild(desired, Some(actual), kept);
    }
    let mut steps = Vec::new();
    for (name, ranges) in &desired.sets {
        if !actual.sets.contains_key(name) {
            steps.push(Step::AddSet(name.clone(), ranges.clone()));
        }
    }
    for (name, rules) in &desired.chains {
        if !actual.chains.contains_key(name) {
            steps.push(Step::AddChain(name.clone(), rules.clone()));
        }
    }
    let dynamic: BTreeSet<&String> = desired.maps.keys().collect();
    for name in dynamic.into_iter().map(String::as_str).chain([LOCAL]) {
        change_elements(name, &target, actual, &mut steps);
    }
    for name in actual.chains.keys().filter(|name| !target.chains.contains_key(*name)) {
        steps.push(Step::DeleteChain(name.clone()));
    }
    for name in actual.sets.keys().filter(|name| !target.sets.contains_key(*name)) {
        steps.push(Step::DeleteSet(name.clone()));
    }
    steps
}

/// How the table is once the steps that [`plan_keeping`] or [`rebuild`] answered are done.
pub fn after(
    steps: &[Step],
    desired: &Ruleset,
    actual: Option<&ActualTable>,
    kept: &BTreeSet<Ipv4Addr>,
) -> ActualTable {
    match (steps.first(), actual) {
        (Some(Step::Rebuild(ruleset)), _) => ActualTable::of(ruleset),
        (_, Some(actual)) => target(desired, actual, kept),
        (_, None) => ActualTable::of(desired),
    }
}

/// The table written anew. What the chains of kept Pods said cannot be read from the kernel: who
/// was isolated there and would not be any more is closed until more is known.
pub fn rebuild(desired: &Ruleset, actual: Option<&ActualTable>, kept: &BTreeSet<Ipv4Addr>) -> Vec<Step> {
    let mut ruleset = desired.clone();
    for direction in Direction::BOTH {
        let found = actual.map(|actual| isolated(actual, direction)).unwrap_or_default();
        for address in found.into_keys().filter(|address| kept.contains(address)) {
            if !ruleset.maps.get(direction.map()).is_some_and(|map| map.contains_key(&address)) {
                ruleset.isolate(address, direction, &Rules { isolated: true, allow: Vec::new() });
            }
        }
    }
    vec![Step::Rebuild(Box::new(ruleset))]
}

/// What is wanted, with what the kernel has of the kept Pods.
fn target(desired: &Ruleset, actual: &ActualTable, kept: &BTreeSet<Ipv4Addr>) -> ActualTable {
    let mut target = ActualTable::of(desired);
    let mut unknown = false;
    for direction in Direction::BOTH {
        for (address, chain) in isolated(actual, direction).into_iter().filter(|(ip, _)| kept.contains(ip)) {
            let Some(rules) = actual.chains.get(&chain) else { continue };
            if !target.chains.contains_key(&chain) {
                target.chains.insert(chain.clone(), rules.clone());
                unknown = true;
            }
            if let Some(SetContent::Verdicts(map)) = target.sets.get_mut(direction.map()) {
                map.insert(address, chain);
            }
        }
    }
    if unknown {
        // Which peers an unknown chain names, its tags do not tell.
        for (name, content) in &actual.sets {
            target.sets.entry(name.clone()).or_insert_with(|| content.clone());
        }
    }
    target
}

/// Who is isolated in the kernel, and by which chain.
fn isolated(actual: &ActualTable, direction: Direction) -> BTreeMap<Ipv4Addr, String> {
    match actual.sets.get(direction.map()) {
        Some(SetContent::Verdicts(map)) => map.clone(),
        _ => BTreeMap::new(),
    }
}

/// Has nobody touched what we never change in place?
fn is_sound(target: &ActualTable, actual: &ActualTable) -> bool {
    let chains = actual.chains.contains_key(FORWARD)
        && actual.chains.iter().all(|(name, tags)| target.chains.get(name).is_none_or(|wanted| wanted == tags));
    let sets = target.sets.iter().all(|(name, wanted)| match (wanted, actual.sets.get(name)) {
        (SetContent::Verdicts(_), Some(SetContent::Verdicts(_))) => true,
        (SetContent::Verdicts(_), _) => false,
        (SetContent::Addresses(_), Some(SetContent::Addresses(_))) if name == LOCAL => true,
        (SetContent::Addresses(_), None) => name != LOCAL,
        (wanted, Some(found)) => wanted == found,
    });
    chains && sets
}

fn elements(content: Option<&SetContent>) -> BTreeMap<Ipv4Addr, Option<String>> {
    match content {
        Some(SetContent::Verdicts(map)) => map.iter().map(|(ip, chain)| (*ip, Some(chain.clone()))).collect(),
        Some(SetContent::Addresses(ranges)) => {
            ranges.ranges().iter().map(|(first, _)| (Ipv4Addr::from(*first), None)).collect()
        }
        None => BTreeMap::new(),
    }
}

fn change_elements(name: &str, target: &ActualTable, actual: &ActualTable, steps: &mut Vec<Step>) {
    let wanted = elements(target.sets.get(name));
    let found = elements(actual.sets.get(name));
    let difference = |a: &BTreeMap<Ipv4Addr, Option<String>>, b: &BTreeMap<Ipv4Addr, Option<String>>| {
        a.iter()
            .filter(|(ip, chain)| b.get(*ip) != Some(*chain))
            .map(|(ip, chain)| (*ip, chain.clone()))
            .collect::<BTreeMap<_, _>>()
    };
    let (gone, new) = (difference(&found, &wanted), difference(&wanted, &found));
    if !gone.is_empty() {
        steps.push(Step::RemoveElements(name.into(), gone));
    }
    if !new.is_empty() {
        steps.push(Step::AddElements(name.into(), new));
    }
}
