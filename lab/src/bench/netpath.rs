//! The path that the pod network is held against: routed veth pairs with nothing in the way.
//!
//! ```text
//!   pod ── veth ── node ── port ─┐
//!                            underlay's bridge          the same hops as between two Pods of the
//!   pod ── veth ── node ── port ─┘                      lab, on the same bridge; no nftables
//! ```
//! Four fresh network namespaces, held by threads; they end with the value.

use std::{
    fs::{self, File},
    net::Ipv4Addr,
    os::fd::OwnedFd,
    sync::mpsc,
    thread,
};

use ipnetwork::Ipv4Network;
use nix::sched::{CloneFlags, unshare};

use super::traffic::Ends;
use crate::{
    Error, Result,
    fault::underlay::{Plug, Underlay},
    netlink::{add_address, add_route, add_veth, connect, up_by_name},
    netns,
};

/// Host part of the two machines' underlay addresses, and their ports at the switch: far behind
/// the nodes of any topology.
const FIRST_HOST: u32 = 241;
/// RFC 2544: addresses for benchmarks, which nobody routes.
const PODS: [[u8; 4]; 2] = [[198, 18, 1, 0], [198, 18, 2, 0]];
const PREFIX: u8 = 24;
/// The node's end of a Pod's pair.
const NODE_END: &str = "pod0";
const POD_END: &str = "eth0";

/// A fresh network namespace, there as long as this is.
struct Holder {
    /// The thread that holds it, whose number names it in /proc.
    tid: i32,
    /// Its end is the thread's sign to end.
    release: Option<mpsc::SyncSender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Holder {
    fn new() -> Result<Self> {
        let (made, answer) = mpsc::sync_channel(1);
        let (release, released) = mpsc::sync_channel::<()>(1);
        let thread = thread::Builder::new().name("holds-netns".to_owned()).spawn(move || {
            let unshared = unshare(CloneFlags::CLONE_NEWNET).map(|()| nix::unistd::gettid().as_raw());
            let held = unshared.is_ok();
            if made.send(unshared).is_ok() && held {
                // Ends with an error when the value is dropped: nobody ever sends.
                let _ = released.recv();
            }
        });
        let thread = thread.map_err(Error::io("start a thread"))?;
        let tid = answer.recv().map_err(|_| ended())?.map_err(Error::errno("make a network namespace"))?;
        Ok(Self { tid, release: Some(release), thread: Some(thread) })
    }

    fn file(&self) -> Result<OwnedFd> {
        let path = format!("/proc/{}/ns/net", self.tid);
        File::open(&path).map(Into::into).map_err(Error::io(path))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.release.take());
        if let Some(thread) = self.thread.take() {
            // It cannot panic, and could not be helped here.
            drop(thread.join());
        }
    }
}

fn ended() -> Error {
    Error::Format { what: "a network namespace".to_owned(), why: "its thread ended".to_owned() }
}

/// Two machines with a Pod each.
pub(super) struct Reference {
    _nodes: [Holder; 2],
    pods: [Holder; 2],
}

impl Reference {
    /// Plugs them into the lab's underlay.
    pub(super) fn build(underlay: Underlay, subnet: Ipv4Network) -> Result<Self> {
        let nodes = [Holder::new()?, Holder::new()?];
        let pods = [Holder::new()?, Holder::new()?];
        let addresses = [node_address(subnet, 0), node_address(subnet, 1)];
        for side in 0..2 {
            let index = FIRST_HOST as usize + side;
            let plug = Plug { index, address: addresses[side], prefix: subnet.prefix(), group: None };
            underlay.plug(nodes[side].tid, plug)?;
            connect_pod(&nodes[side], &pods[side], side)?;
            route(&nodes[side], 1 - side, addresses[1 - side])?;
        }
        Ok(Self { _nodes: nodes, pods })
    }

    /// From the first Pod to the second.
    pub(super) fn ends(&self) -> Ends {
        Ends { client: self.pods[0].tid, server: self.pods[1].tid, address: host(1, 2) }
    }
}

fn node_address(subnet: Ipv4Network, side: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()) + FIRST_HOST + side)
}

/// Host `number` of that side's Pods.
fn host(side: usize, number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from_be_bytes(PODS[side]) + number)
}

fn connect_pod(node: &Holder, pod: &Holder, side: usize) -> Result<()> {
    let pod_ns = pod.file()?;
    netns::inside_async(node.tid, move || async move {
        let net = connect()?;
        add_veth(&net, NODE_END, POD_END, &pod_ns, None).await?;
        add_address(&net, NODE_END, host(side, 1), PREFIX).await?;
        up_by_name(&net, NODE_END).await?;
        // The file shows the namespace of the thread that writes it.
        let forward = "/proc/sys/net/ipv4/ip_forward";
        fs::write(forward, "1").map_err(Error::io(forward))
    })?;
    netns::inside_async(pod.tid, move || async move {
        let net = connect()?;
        up_by_name(&net, "lo").await?;
        add_address(&net, POD_END, host(side, 2), PREFIX).await?;
        up_by_name(&net, POD_END).await?;
        add_route(&net, network(Ipv4Addr::UNSPECIFIED, 0)?, host(side, 1)).await
    })
}

fn route(node: &Holder, to: usize, via: Ipv4Addr) -> Result<()> {
    let to = network(host(to, 0), PREFIX)?;
    netns::inside_async(node.tid, move || async move { add_route(&connect()?, to, via).await })
}

fn network(address: Ipv4Addr, prefix: u8) -> Result<Ipv4Network> {
    Ipv4Network::new(address, prefix).map_err(|e| Error::Topology(e.to_string()))
}
