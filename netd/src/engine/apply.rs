//! From what is known to what is in the kernel: policy first, then links, then routes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnetwork::Ipv4Network;
use trellis_model::policy::PodPolicy;

use super::Engine;
use crate::kernel::rtnl::{Neighbour, ROUTE_PROTOCOL, Route, Rtnl, Target};
use crate::kernel::{KernelError, sysctl};
use crate::links::{
    ActualLinks, DesiredLinks, HOST_MAC, POD_INTERFACE, PodLink, PodSide, Step, host_interface, is_host_interface,
    pod_mac,
};
use crate::policy;
use crate::routes::{self, ActualRoutes, DesiredRoutes, Hop};

/// Used until the underlay's interface is found.
const FALLBACK_MTU: u32 = 1500;
/// The link watcher runs at least once a second.
const SETTLE_LIMIT: Duration = Duration::from_millis(1100);
/// Every host's loopback interface has this index.
const LOOPBACK_INDEX: u32 = 1;

impl Engine {
    /// Makes the kernel as it should be. Whatever had to be done although nothing else was wanted
    /// than the last time is drift, and counted.
    pub(super) fn apply(&mut self) -> Result<(), KernelError> {
        let asked = std::mem::take(&mut self.dirty) | !self.detached.is_empty();
        let looked = std::mem::take(&mut self.look);
        let inspect = std::mem::take(&mut self.inspect);
        self.failed.clear();
        let done = self.apply_all(looked, &inspect);
        match done {
            Ok(repairs) => {
                if repairs > 0 {
                    self.repairs += repairs;
                    tracing::warn!(repairs, "repaired drift in the kernel");
                }
                self.note_applied();
                Ok(())
            }
            Err(error) => {
                self.dirty |= asked;
                self.look = true;
                self.inspect = inspect;
                self.table = None;
                Err(error)
            }
        }
    }

    /// What changed in the cluster means nothing to this node: the kernel need not be asked. Most
    /// changes are such: every node hears of every Pod.
    pub(super) fn is_as_wanted(&mut self) -> bool {
        let settled = self.inspect.is_empty() && self.gone.is_empty() && self.failed.is_empty();
        let (Some(routes), Some(_), Some(_)) = (&self.routes, &self.links, &self.table) else { return false };
        if !settled || self.desired_routes(routes.source) != *routes {
            return false;
        }
        let policies = self.compile_policies();
        self.policies.as_ref() == Some(&policies)
    }

    /// Everything up to the cluster's present revision is in the kernel.
    pub(super) fn note_applied(&mut self) {
        let revision = self.cluster.revision();
        if revision != self.applied {
            self.applied = revision;
            self.applied_out.send_replace(revision);
        }
    }

    fn apply_all(&mut self, looked: bool, inspect: &BTreeSet<String>) -> Result<u64, KernelError> {
        let addresses = self.rtnl.addresses()?;
        let links = self.rtnl.links()?;
        let advertise = self.config.advertise;
        let underlay = addresses.iter().find(|address| address.network.ip() == advertise);
        let underlay_link = underlay.and_then(|found| links.iter().find(|link| link.index == found.index));
        self.mtu = underlay_link.map_or(FALLBACK_MTU, |link| link.mtu);
        sysctl::set("ipv4/ip_forward", "1")?;
        let own: BTreeSet<Ipv4Addr> = addresses.iter().map(|address| address.network.ip()).collect();
        let mut repairs = self.apply_policy(looked, &own)?;
        let loopback =
            addresses.iter().filter(|address| address.index == LOOPBACK_INDEX).map(|address| address.network).collect();
        let host = links.into_iter().map(|link| (link.name.clone(), link)).collect();
        let mut actual = ActualLinks { host, neighbours: self.rtnl.neighbours()?, loopback, pods: BTreeMap::new() };
        repairs += self.apply_links(&mut actual, inspect)?;
        if looked {
            repairs += self.guard_sources()?;
        }
        let underlay = underlay.map(|found| (found.index, found.network));
        repairs += self.apply_routes(underlay)?;
        Ok(repairs)
    }

    // ---- policy ---------------------------------------------------------------------------

    fn apply_policy(&mut self, looked: bool, own: &BTreeSet<Ipv4Addr>) -> Result<u64, KernelError> {
        let policies = self.compile_policies();
        let desired = self.desired_ruleset();
        if looked || self.table.is_none() {
            self.table = self.nft.read()?;
        }
        if self.ipam.is_none() && self.table.is_some() {
            // Whose policy that is, only the pod CIDR will tell.
            return Ok(0);
        }
        let kept = self.kept();
        let mut steps = policy::plan_keeping(&desired, self.table.as_ref(), &kept);
        let wanted_before = self.policies.as_ref() == Some(&policies);
        let repairs = if wanted_before { steps.len() as u64 } else { 0 };
        if !steps.is_empty() {
            for step in &steps {
                tracing::debug!(%step, "policy");
            }
            if let Err(error) = self.nft.commit(&steps) {
                // Somebody changed the table under us: write it anew, in one transaction as well.
                tracing::warn!(%error, "policy update refused; rebuilding the table");
                steps = policy::rebuild(&desired, self.table.as_ref(), &kept);
                self.nft.commit(&steps)?;
            }
            self.table = Some(policy::after(&steps, &desired, self.table.as_ref(), &kept));
            // Out-of-window packets of long-lived connections must not count as invalid, above
            // all after the table, and with it tracking, was away for a moment.
            let _ = sysctl::set("netfilter/nf_conntrack_tcp_be_liberal", "1");
        }
        // Before everything is listed, what is known may be older than what was allowed.
        let judge = !self.is_cautious() && (!self.judged || narrows(self.policies.as_deref(), &policies));
        if judge || !self.gone.is_empty() {
            self.cut_connections(judge.then_some(&*policies), own)?;
            self.judged |= judge;
        }
        self.policies = Some(policies);
        Ok(repairs)
    }

    /// Forgets connections of Pods that are gone, and those that began before the rules and are not
    /// allowed by them. Their next packet is a new one without SYN, and is reset.
    fn cut_connections(
        &mut self,
        policies: Option<&BTreeMap<Ipv4Addr, PodPolicy>>,
        own: &BTreeSet<Ipv4Addr>,
    ) -> Result<(), KernelError> {
        let gone: BTreeSet<Ipv4Addr> = self.gone.values().copied().collect();
        for tracked in self.conntrack.list()? {
            let connection = &tracked.connection;
            let of_gone = gone.contains(&connection.source) || gone.contains(&connection.destination);
            if of_gone || policies.is_some_and(|policies| !policy::permits(connection, policies, own)) {
                if !of_gone {
                    tracing::info!(source = %connection.source, destination = %connection.destination,
                        port = connection.port, "ended a connection that is no longer allowed");
                }
                self.conntrack.delete(&tracked)?;
            }
        }
        Ok(())
    }

    // ---- links ----------------------------------------------------------------------------

    fn apply_links(&mut self, actual: &mut ActualLinks, inspect: &BTreeSet<String>) -> Result<u64, KernelError> {
        let Some(ipam) = &self.ipam else { return Ok(0) };
        let pods: Vec<PodLink> = ipam.in_use().map(|(uid, address)| PodLink { uid: uid.into(), address }).collect();
        let gateway = ipam.gateway();
        for pod in &pods {
            let missing = !actual.host.contains_key(&host_interface(&pod.uid));
            if (missing || inspect.contains(&pod.uid))
                && let Some(held) = self.held.get_mut(&pod.uid)
            {
                match look_inside(&mut held.rtnl) {
                    Ok(side) => drop(actual.pods.insert(pod.uid.clone(), side)),
                    Err(error) => drop(self.failed.insert(pod.uid.clone(), Arc::new(error))),
                }
            }
        }
        let desired =
            DesiredLinks { pods, gateway: Some(gateway), mtu: self.mtu, gone: self.gone.keys().cloned().collect() };
        let steps = crate::links::plan(&desired, actual);
        for step in &steps {
            // One Pod's trouble must not keep the others from the network; its own further steps
            // would only fail as well.
            if step.pod().is_some_and(|uid| self.failed.contains_key(uid)) {
                continue;
            }
            tracing::debug!(%step, "link");
            match (self.execute(step, gateway), step.pod()) {
                (Ok(()), _) => {}
                (Err(error), Some(uid)) => {
                    tracing::error!(pod = uid, %error, "cannot connect a Pod; trying again");
                    self.failed.insert(uid.to_owned(), Arc::new(error));
                }
                (Err(error), None) => return Err(error),
            }
        }
        self.gone.clear();
        let desired = DesiredLinks { gone: BTreeSet::new(), ..desired };
        let wanted_before = self.links.as_ref() == Some(&desired);
        let repairs = if wanted_before && self.failed.is_empty() { steps.len() as u64 } else { 0 };
        self.links = self.failed.is_empty().then_some(desired);
        Ok(repairs)
    }

    /// The guard against forged sources of every Pod that is connected: no event tells of a
    /// setting that somebody changed.
    fn guard_sources(&mut self) -> Result<u64, KernelError> {
        let mut repairs = 0;
        for link in self.rtnl.links()?.iter().filter(|link| is_host_interface(&link.name) && link.up) {
            match sysctl::set(&format!("ipv4/conf/{}/rp_filter", link.name), "1") {
                Ok(changed) => repairs += u64::from(changed),
                // It went meanwhile.
                Err(error) if error.errno() == Some(nix::errno::Errno::ENOENT as i32) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(repairs)
    }

    fn execute(&mut self, step: &Step, gateway: Ipv4Addr) -> Result<(), KernelError> {
        match step {
            Step::Delete(name) => self.rtnl.delete_link(name),
            Step::GatewayAddress(ip) => {
                self.rtnl.set_link(LOOPBACK_INDEX, true, None, None)?;
                self.rtnl.add_address(LOOPBACK_INDEX, host_route(*ip))
            }
            Step::Create(pod) => self.create(pod),
            Step::HostUp(pod) => self.host_up(pod),
            Step::HostNeighbour(pod) => {
                let index = index_of(&mut self.rtnl, &host_interface(&pod.uid))?;
                self.rtnl.set_neighbour(Neighbour { index, address: pod.address, mac: pod_mac(pod.address) })
            }
            Step::PodLoopback(uid) => match self.held.get_mut(uid) {
                Some(held) => held.rtnl.set_link(LOOPBACK_INDEX, true, None, None),
                None => Ok(()),
            },
            Step::PodAddress(pod) => {
                self.inside(&pod.uid, |rtnl, index, _| rtnl.add_address(index, host_route(pod.address)))
            }
            Step::PodUp(uid) => self.inside(uid, |rtnl, index, mtu| rtnl.set_link(index, true, Some(mtu), None)),
            Step::PodNeighbour(uid) => self
                .inside(uid, |rtnl, index, _| rtnl.set_neighbour(Neighbour { index, address: gateway, mac: HOST_MAC })),
            Step::PodGatewayRoute(uid) => {
                self.inside(uid, |rtnl, index, _| rtnl.set_route(&pod_route(host_route(gateway), Target::Link(index))))
            }
            Step::PodDefaultRoute(uid) => self.inside(uid, |rtnl, index, _| {
                rtnl.set_route(&pod_route(any_address(), Target::Gateway(gateway, index)))
            }),
        }
    }

    fn create(&mut self, pod: &PodLink) -> Result<(), KernelError> {
        let Some(held) = self.held.get_mut(&pod.uid) else { return Ok(()) };
        let name = host_interface(&pod.uid);
        held.rtnl.add_veth(POD_INTERFACE, pod_mac(pod.address), &name, HOST_MAC, self.netns.as_fd(), self.mtu)
    }

    /// The node's side: no forged sources (RFC 3704, strict), no IPv6 on a network without it.
    fn host_up(&mut self, pod: &PodLink) -> Result<(), KernelError> {
        let name = host_interface(&pod.uid);
        debug_assert!(is_host_interface(&name));
        let index = index_of(&mut self.rtnl, &name)?;
        sysctl::set(&format!("ipv4/conf/{name}/rp_filter"), "1")?;
        sysctl::set(&format!("ipv4/conf/{name}/forwarding"), "1")?;
        // A kernel without IPv6 has no such setting, and needs none.
        let _ = sysctl::set(&format!("ipv6/conf/{name}/disable_ipv6"), "1");
        self.rtnl.set_link(index, true, Some(self.mtu), Some(&pod.uid))?;
        self.settle(pod)
    }

    /// Both sides are up, but until the kernel's link watcher has run they drop what they are
    /// given; a SYN lost so costs a second.
    fn settle(&mut self, pod: &PodLink) -> Result<(), KernelError> {
        let name = host_interface(&pod.uid);
        let Some(held) = self.held.get_mut(&pod.uid) else { return Ok(()) };
        let deadline = Instant::now() + SETTLE_LIMIT;
        loop {
            let host = self.rtnl.link(&name)?.is_some_and(|link| link.operational);
            let inside = held.rtnl.link(POD_INTERFACE)?.is_some_and(|link| link.operational);
            if host && inside {
                return Ok(());
            }
            if Instant::now() >= deadline {
                tracing::warn!(pod = pod.uid, interface = name, "the veth pair has no carrier after 1 s");
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn inside(
        &mut self,
        uid: &str,
        act: impl FnOnce(&mut Rtnl, u32, u32) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let Some(held) = self.held.get_mut(uid) else { return Ok(()) };
        let index = index_of(&mut held.rtnl, POD_INTERFACE)?;
        act(&mut held.rtnl, index, self.mtu)
    }

    // ---- routes ---------------------------------------------------------------------------

    fn desired_routes(&self, source: Option<Ipv4Addr>) -> DesiredRoutes {
        let routes = self.cluster.node_routes(&self.config.node_name, &self.view, self.api_is_fresh());
        let mut desired = DesiredRoutes { routes, source };
        if let Some(ipam) = &self.ipam {
            // What nobody here has must not go out by a default route.
            desired.routes.insert(ipam.cidr(), Hop::Nowhere);
            for (uid, address) in ipam.in_use() {
                desired.routes.insert(host_route(address), Hop::Interface(host_interface(uid)));
            }
        }
        desired
    }

    fn apply_routes(&mut self, underlay: Option<(u32, Ipv4Network)>) -> Result<u64, KernelError> {
        let desired = self.desired_routes(underlay.map(|_| self.config.advertise));
        let interfaces = self.rtnl.links()?.into_iter().map(|link| (link.name, link.index)).collect();
        let actual = ActualRoutes { routes: self.rtnl.routes()?, interfaces, underlay };
        self.tell_unrouted(underlay.map(|(_, network)| network), routes::off_link(&desired, &actual));
        let steps = routes::plan(&desired, &actual);
        let mut all = true;
        for step in &steps {
            tracing::debug!(%step, "route");
            let done = match step {
                routes::Step::Set(route) => self.rtnl.set_route(route),
                routes::Step::Delete(route) => self.rtnl.delete_route(route),
            };
            if let Err(error) = done {
                all = false;
                self.route_failed(step, error);
            }
        }
        let wanted_before = self.routes.as_ref() == Some(&desired);
        let repairs = if wanted_before && all { steps.len() as u64 } else { 0 };
        self.routes = all.then_some(desired);
        Ok(repairs)
    }

    /// One route's trouble must not keep the Pods from the network; it is tried again with the next
    /// tick. Only the Pod that the route leads to is not connected.
    fn route_failed(&mut self, step: &routes::Step, error: KernelError) {
        let (routes::Step::Set(route) | routes::Step::Delete(route)) = step;
        let pod = self.ipam.as_ref().and_then(|ipam| {
            ipam.in_use().find(|(_, address)| host_route(*address) == route.destination).map(|(uid, _)| uid.to_owned())
        });
        tracing::error!(%step, pod = pod.as_deref(), %error, "cannot change a route; trying again");
        if let Some(uid) = pod {
            self.failed.insert(uid, Arc::new(error));
        }
    }
}

/// May a connection exist that the new policies forbid and the old ones did not? A Pod that has only
/// just got its address has none, and to look is dear: the kernel walks a table that all network
/// namespaces share.
fn narrows(old: Option<&BTreeMap<Ipv4Addr, PodPolicy>>, new: &BTreeMap<Ipv4Addr, PodPolicy>) -> bool {
    old.is_none_or(|old| old.iter().any(|(address, policy)| new.get(address) != Some(policy)))
}

fn look_inside(rtnl: &mut Rtnl) -> Result<PodSide, KernelError> {
    let links = rtnl.links()?;
    let link = links.iter().find(|link| link.name == POD_INTERFACE).cloned();
    let loopback_up = links.iter().any(|link| link.index == LOOPBACK_INDEX && link.up);
    let index = link.as_ref().map(|link| link.index);
    Ok(PodSide {
        addresses: rtnl
            .addresses()?
            .into_iter()
            .filter(|address| Some(address.index) == index)
            .map(|address| address.network)
            .collect(),
        neighbours: rtnl.neighbours()?,
        routes: rtnl.routes()?,
        link,
        loopback_up,
    })
}

fn index_of(rtnl: &mut Rtnl, name: &str) -> Result<u32, KernelError> {
    match rtnl.link(name)? {
        Some(link) => Ok(link.index),
        None => Err(KernelError::NoInterface { verb: "set up", name: name.into() }),
    }
}

fn host_route(address: Ipv4Addr) -> Ipv4Network {
    Ipv4Network::from(address)
}

fn any_address() -> Ipv4Network {
    Ipv4Network::new(Ipv4Addr::UNSPECIFIED, 0).unwrap_or_else(|_| Ipv4Network::from(Ipv4Addr::UNSPECIFIED))
}

fn pod_route(destination: Ipv4Network, target: Target) -> Route {
    Route { destination, target, source: None, metric: 0, protocol: ROUTE_PROTOCOL }
}
