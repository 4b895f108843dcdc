//! The switch's rules, as an nftables table of the bridge family in the underlay's namespace.
//!
//! ```text
//! table bridge lab {
//!   chain forward { type filter hook forward priority filter;
//!     meta protocol != arp iifname "port0" oifname "port2" drop     a one-way partition
//!     iifname "port3" numgen random mod 10000 < 1000 drop   10 % lost
//! ```
//! A one-way partition lets ARP pass, as a firewall between machines does: otherwise nobody could
//! answer for long, and it would be a partition in both ways.
//!
//! The table is written anew as a whole, in one transaction. Ports are matched by name, so that
//! rules outlive a node's death and hold again when it is back. With large receive offloads on
//! virtual links a "packet" here may be several on a wire, as with any filter of this machine.

use nix::sys::socket::SockProtocol;

use super::{
    state::{Rule, WHOLE},
    underlay::port_name,
    wire::{ACK, APPEND, Attributes, Batch, CREATE, lacking, refused},
};
use crate::Result;

const TABLE: &str = "lab";
const CHAIN: &str = "forward";
/// linux/netfilter.h: NFPROTO_BRIDGE.
const FAMILY_BRIDGE: u8 = 7;
/// linux/netfilter/nfnetlink.h: the subsystem, and the messages that fence a transaction.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// linux/netfilter/nf_tables.h, nf_tables_msg_types.
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
/// linux/netfilter_bridge.h: NF_BR_FORWARD.
const HOOK_FORWARD: u32 = 2;
/// A register of 16 bytes, as wide as an interface's name; and one that holds a verdict.
const REGISTER: u32 = 1;
const VERDICT: u32 = 0;
const DROP: u32 = 0;
const META_PROTOCOL: u32 = 1;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const COMPARE_EQUAL: u32 = 0;
const COMPARE_NOT_EQUAL: u32 = 1;
const COMPARE_LESS: u32 = 2;
const ETHERTYPE_ARP: u16 = 0x0806;
/// IFNAMSIZ
const NAME_BYTES: usize = 16;

/// Makes the calling thread's network namespace do as the rules say; no rules, no table.
pub(super) fn apply(rules: &[Rule]) -> Result<()> {
    let what = "write the switch's rules";
    match transaction(rules).send() {
        Err(e)
            if e.raw_os_error() == Some(nix::libc::EOPNOTSUPP) || e.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) =>
        {
            lacking(
                format!("{what}: this kernel has no nftables for bridges"),
                "a kernel with CONFIG_NF_TABLES_BRIDGE, or `modprobe nf_tables`; `partition` without --one-way needs none",
            )
        }
        done => done.map_err(refused(what)),
    }
}

struct Transaction {
    batch: Batch,
    last: u32,
}

impl Transaction {
    fn send(&self) -> std::io::Result<()> {
        self.batch.send(SockProtocol::NetlinkNetFilter, self.last)
    }
}

fn transaction(rules: &[Rule]) -> Transaction {
    let fence = [0, 0, SUBSYSTEM.to_be_bytes()[0], SUBSYSTEM.to_be_bytes()[1]];
    let family = [FAMILY_BRIDGE, 0, 0, 0];
    let message = |kind: u16| SUBSYSTEM << 8 | kind;
    let named = || Attributes::default().text(1, TABLE);
    let mut batch = Batch::default();
    batch.push(BATCH_BEGIN, 0, &fence, Attributes::default());
    // Made first, so that deleting cannot fail where there is none.
    batch.push(message(NEW_TABLE), CREATE, &family, named());
    let mut last = 3;
    batch.push(message(DELETE_TABLE), if rules.is_empty() { ACK } else { 0 }, &family, named());
    if !rules.is_empty() {
        batch.push(message(NEW_TABLE), CREATE, &family, named());
        let hook = Attributes::default().number(1, HOOK_FORWARD).number(2, 0);
        let chain = named().text(3, CHAIN).nest(4, hook).text(7, "filter");
        batch.push(message(NEW_CHAIN), CREATE, &family, chain);
        for (at, rule) in rules.iter().enumerate() {
            let flags = CREATE | APPEND | if at + 1 == rules.len() { ACK } else { 0 };
            let attributes = named().text(2, CHAIN).nest(4, expressions(rule));
            batch.push(message(NEW_RULE), flags, &family, attributes);
        }
        last = batch.len();
    }
    batch.push(BATCH_END, 0, &fence, Attributes::default());
    Transaction { batch, last }
}

fn expressions(rule: &Rule) -> Attributes {
    let list = Attributes::default();
    let list = match *rule {
        Rule::Cut { from, to } => {
            let list = expression(list, "meta", Attributes::default().number(1, REGISTER).number(2, META_PROTOCOL));
            let list = compare(list, COMPARE_NOT_EQUAL, &ETHERTYPE_ARP.to_be_bytes());
            interface_is(interface_is(list, META_IIFNAME, from), META_OIFNAME, to)
        }
        Rule::Lose { node, incoming, share } => {
            let list = interface_is(list, if incoming { META_IIFNAME } else { META_OIFNAME }, node);
            // Drawn in the machine's byte order, compared byte by byte: turned to network order.
            let draw = Attributes::default().number(1, REGISTER).number(2, WHOLE).number(3, 1).number(4, 0);
            let turn =
                Attributes::default().number(1, REGISTER).number(2, REGISTER).number(3, 1).number(4, 4).number(5, 4);
            let list = expression(expression(list, "numgen", draw), "byteorder", turn);
            compare(list, COMPARE_LESS, &share.to_be_bytes())
        }
    };
    let verdict = Attributes::default().number(1, DROP);
    let drop = Attributes::default().number(1, VERDICT).nest(2, Attributes::default().nest(2, verdict));
    expression(list, "immediate", drop)
}

fn interface_is(list: Attributes, key: u32, node: usize) -> Attributes {
    let list = expression(list, "meta", Attributes::default().number(1, REGISTER).number(2, key));
    let mut name = port_name(node).into_bytes();
    name.resize(NAME_BYTES, 0);
    compare(list, COMPARE_EQUAL, &name)
}

fn compare(list: Attributes, how: u32, with: &[u8]) -> Attributes {
    let data = Attributes::default().put(1, with);
    expression(list, "cmp", Attributes::default().number(1, REGISTER).number(2, how).nest(3, data))
}

fn expression(list: Attributes, name: &str, data: Attributes) -> Attributes {
    list.nest(1, Attributes::default().text(1, name).nest(2, data))
}
