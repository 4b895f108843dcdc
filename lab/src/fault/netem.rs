//! Delay: the kernel's network emulator (tc-netem(8)) as a link's queueing discipline.
//!
//! Not every kernel has it; where it is missing, that is said, with the way to get it.

use std::time::Duration;

use nix::sys::socket::SockProtocol;

use super::wire::{ACK, Attributes, Batch, CREATE, REPLACE, lacking, refused};
use crate::{
    Result,
    netlink::{connect, index_of},
};

/// linux/rtnetlink.h
const NEW_QDISC: u16 = 36;
const DELETE_QDISC: u16 = 37;
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
/// linux/pkt_sched.h: TC_H_ROOT.
const ROOT: u32 = 0xffff_ffff;
/// linux/pkt_sched.h: TCA_NETEM_LATENCY64, nanoseconds.
const LATENCY: u16 = 10;
/// Packets that may be on their way at once; netem(8)'s own 1000 is less than a second of traffic.
const LIMIT: u32 = 100_000;

/// Delays what leaves by that interface of the calling thread's namespace; no delay when zero.
/// An interface that is not there is none's: its node is off.
pub(super) async fn apply(interface: &str, by: Duration) -> Result<()> {
    let Some(index) = index_of(&connect()?, interface).await? else { return Ok(()) };
    let what = format!("delay packets on {interface}");
    match message(index, by).send(SockProtocol::NetlinkRoute, 1) {
        Ok(()) => Ok(()),
        // Without a delay there is nothing to delete.
        Err(e) if by.is_zero() && matches!(e.raw_os_error(), Some(nix::libc::ENOENT | nix::libc::EINVAL)) => Ok(()),
        Err(e) if e.raw_os_error() == Some(nix::libc::ENOENT) => lacking(
            format!("{what}: this kernel lacks sch_netem"),
            "`modprobe sch_netem`, or a kernel with CONFIG_NET_SCH_NETEM",
        ),
        Err(e) => Err(refused(&what)(e)),
    }
}

fn message(index: u32, by: Duration) -> Batch {
    // struct tcmsg: family and padding, interface, handle, parent, info.
    let mut fixed = vec![0; 4];
    for field in [index, 0, ROOT, 0] {
        fixed.extend_from_slice(&field.to_ne_bytes());
    }
    let mut batch = Batch::default();
    if by.is_zero() {
        batch.push(DELETE_QDISC, ACK, &fixed, Attributes::default());
        return batch;
    }
    // struct tc_netem_qopt: latency (in ticks; the attribute below overrules it), limit, loss,
    // gap, duplicate, jitter; attributes follow it directly.
    let mut options: Vec<u8> = [0, LIMIT, 0, 0, 0, 0].iter().flat_map(|field: &u32| field.to_ne_bytes()).collect();
    let nanos = i64::try_from(by.as_nanos()).unwrap_or(i64::MAX);
    options.extend_from_slice(Attributes::default().put(LATENCY, &nanos.to_ne_bytes()).bytes());
    let attributes = Attributes::default().text(KIND, "netem").put(OPTIONS, &options);
    batch.push(NEW_QDISC, ACK | CREATE | REPLACE, &fixed, attributes);
    batch
}
