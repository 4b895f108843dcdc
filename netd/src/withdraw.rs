//! Taking the pod network out of the kernel again, when a machine leaves its cluster: the table,
//! our routes, the host sides of veth pairs, the gateway's address. The daemon must not run.
//!
//! Left as it is: `net.ipv4.ip_forward`, which others may have come to rely on.

use ipnetwork::Ipv4Network;

use crate::kernel::KernelError;
use crate::kernel::nft::Nft;
use crate::kernel::rtnl::{Link, LinkAddress, ROUTE_PROTOCOL, Route, Rtnl};
use crate::links::is_host_interface;
use crate::store::Store;

/// What was taken out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Withdrawn {
    /// The policy table.
    pub tables: usize,
    /// Routes.
    pub routes: usize,
    /// Interfaces.
    pub links: usize,
    /// Addresses.
    pub addresses: usize,
}

/// Removes all that netd makes in the calling thread's network namespace. Idempotent.
///
/// # Errors
/// What the kernel refused; what came before it is done.
pub fn withdraw(store: &Store) -> Result<Withdrawn, KernelError> {
    let mut done = Withdrawn::default();
    let mut rtnl = Rtnl::open()?;
    for route in ours(rtnl.routes()?) {
        rtnl.delete_route(&route)?;
        done.routes += 1;
    }
    for link in pod_links(rtnl.links()?) {
        rtnl.delete_link(&link.name)?;
        done.links += 1;
    }
    // A file that cannot be read, or is of a newer release, names no address: the gateway's stays then.
    let gateway = store.load_ipam().ok().flatten().map(|ipam| Ipv4Network::from(ipam.gateway()));
    if let Some(LinkAddress { index, network }) = rtnl.addresses()?.into_iter().find(|a| Some(a.network) == gateway) {
        rtnl.delete_address(index, network)?;
        done.addresses += 1;
    }
    let mut nft = Nft::open()?;
    if nft.read()?.is_some() {
        nft.delete_table()?;
        done.tables += 1;
    }
    Ok(done)
}

fn ours(routes: Vec<Route>) -> impl Iterator<Item = Route> {
    routes.into_iter().filter(|route| route.protocol == ROUTE_PROTOCOL)
}

fn pod_links(links: Vec<Link>) -> impl Iterator<Item = Link> {
    links.into_iter().filter(|link| is_host_interface(&link.name))
}
