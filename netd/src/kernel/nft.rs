//! nftables over netlink: one batch, one transaction.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::net::Ipv4Addr;

use netlink_bindings::nftables::{Chained, Nfgenmsg, PushSetelemListElemAttrs, VerdictCode};
use netlink_bindings::traits::{NetlinkChained, Pusher};
use nix::sys::socket::SockProtocol;

use super::KernelError;
use super::nft_rule::push_rule;
use super::socket::NetlinkSocket;
use crate::policy::{AddressRanges, FORWARD, LOCAL, Rule, Ruleset, Step, TABLE};

/// NFPROTO_INET: one table for both IP versions.
pub(super) const FAMILY_INET: u8 = 1;
/// nfnetlink subsystem of nftables: batch messages name it.
const SUBSYSTEM: u16 = 10;
/// linux/netfilter_ipv4.h: NF_INET_FORWARD.
const HOOK_FORWARD: u32 = 2;
/// NF_IP_PRI_FILTER.
const PRIORITY_FILTER: i32 = 0;
const NF_ACCEPT: u32 = 1;
/// Type numbers of nft's user space: they only make `nft list` readable.
const TYPE_IPV4_ADDRESS: u32 = 7;
const TYPE_VERDICT: u32 = 0xffff_ff00;
const SET_INTERVAL: u32 = 1 << 2;
const SET_MAP: u32 = 1 << 3;
const ELEMENT_INTERVAL_END: u32 = 1;
/// Elements a message: their attribute's length has 16 bits, and a verdict takes about 70 bytes.
const ELEMENTS_A_MESSAGE: usize = 500;
/// linux/netlink.h: NLM_F_ACK
const NLM_F_ACK: u16 = 4;

/// The door to nftables.
#[derive(Debug)]
pub struct Nft {
    pub(super) socket: NetlinkSocket,
}

impl Nft {
    /// Opens it, in the calling thread's network namespace.
    pub fn open() -> Result<Self, KernelError> {
        Ok(Self { socket: NetlinkSocket::open(SockProtocol::NetlinkNetFilter, 0)? })
    }

    /// Carries out all steps, or none.
    pub fn commit(&mut self, steps: &[Step]) -> Result<(), KernelError> {
        if steps.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new(self.socket.reserve(0));
        for step in steps {
            batch.step(step);
        }
        let count = batch.messages;
        let (bytes, last) = batch.finish();
        self.socket.reserve(count);
        self.socket.transact(&bytes, last).map_err(|source| KernelError::Refused {
            verb: "commit",
            object: format!("table inet {TABLE} ({} steps, first: {})", steps.len(), steps[0]),
            source,
        })
    }
}

impl Nft {
    /// Removes the table with all that is in it; there may be none.
    pub fn delete_table(&mut self) -> Result<(), KernelError> {
        let mut batch = Batch::new(self.socket.reserve(0));
        batch.delete_table();
        let count = batch.messages;
        let (bytes, last) = batch.finish();
        self.socket.reserve(count);
        let refused = |source| KernelError::Refused { verb: "delete", object: format!("table inet {TABLE}"), source };
        self.socket.transact(&bytes, last).map_err(refused)
    }
}

/// A transaction being written.
struct Batch {
    chained: Chained<'static>,
    first: u32,
    messages: u32,
    set_id: u32,
    table: CString,
}

fn header() -> Nfgenmsg {
    Nfgenmsg { nfgen_family: FAMILY_INET, ..Nfgenmsg::default() }
}

fn batch_header() -> Nfgenmsg {
    let mut header = Nfgenmsg::default();
    header.set_res_id(SUBSYSTEM);
    header
}

/// Names are ours: letters, digits and hyphens.
pub(super) fn c(name: &str) -> CString {
    CString::new(name).unwrap_or_default()
}

impl Batch {
    fn new(first: u32) -> Self {
        let mut batch = Self { chained: Chained::new(first), first, messages: 1, set_id: 0, table: c(TABLE) };
        batch.chained.request().op_batch_begin_do(&batch_header()).encode();
        batch
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Rebuild(ruleset) => self.rebuild(ruleset),
            Step::AddSet(name, ranges) => self.add_ranges(name, ranges),
            Step::AddChain(name, rules) => {
                self.add_chain(name);
                self.add_rules(name, rules);
            }
            Step::RemoveElements(set, elements) => self.elements(set, elements, false),
            Step::AddElements(set, elements) => self.elements(set, elements, true),
            Step::DeleteChain(name) => {
                // A chain is deleted with its rules only when it is emptied first.
                self.messages += 2;
                let table = self.table.clone();
                self.chained.request().op_delrule_do(&header()).encode().push_table(&table).push_chain(&c(name));
                self.chained.request().op_delchain_do(&header()).encode().push_table(&table).push_name(&c(name));
            }
            Step::DeleteSet(name) => {
                self.messages += 1;
                let table = self.table.clone();
                self.chained.request().op_delset_do(&header()).encode().push_table(&table).push_name(&c(name));
            }
        }
    }

    fn delete_table(&mut self) {
        let table = self.table.clone();
        // Made first so that deleting cannot fail where there is none.
        self.messages += 2;
        self.chained.request().set_create().op_newtable_do(&header()).encode().push_name(&table);
        self.chained.request().op_deltable_do(&header()).encode().push_name(&table);
    }

    fn rebuild(&mut self, ruleset: &Ruleset) {
        let table = self.table.clone();
        self.delete_table();
        self.messages += 1;
        self.chained.request().set_create().op_newtable_do(&header()).encode().push_name(&table);
        self.add_set(LOCAL, 0);
        self.elements(LOCAL, &ruleset.local.iter().map(|ip| (*ip, None)).collect(), true);
        for (name, ranges) in &ruleset.sets {
            self.add_ranges(name, ranges);
        }
        for name in ruleset.chains.keys() {
            self.add_chain(name);
        }
        for (name, elements) in &ruleset.maps {
            self.add_set(name, SET_MAP);
            let elements = elements.iter().map(|(ip, chain)| (*ip, Some(chain.clone()))).collect();
            self.elements(name, &elements, true);
        }
        for (name, rules) in &ruleset.chains {
            self.add_rules(name, rules);
        }
    }

    fn add_set(&mut self, name: &str, flags: u32) {
        self.messages += 1;
        self.set_id += 1;
        let mut request = self.chained.request().set_create().op_newset_do(&header());
        let attributes = request
            .encode()
            .push_table(&self.table)
            .push_name(&c(name))
            .push_flags(flags)
            .push_key_type(TYPE_IPV4_ADDRESS)
            .push_key_len(4)
            .push_id(self.set_id);
        if flags & SET_MAP != 0 {
            attributes.push_data_type(TYPE_VERDICT).push_data_len(0);
        }
    }

    fn add_ranges(&mut self, name: &str, ranges: &AddressRanges) {
        if ranges.is_single() {
            self.add_set(name, 0);
            let elements = ranges.ranges().iter().map(|(first, _)| (Ipv4Addr::from(*first), None)).collect();
            return self.elements(name, &elements, true);
        }
        self.add_set(name, SET_INTERVAL);
        for part in ranges.ranges().chunks(ELEMENTS_A_MESSAGE / 2) {
            self.messages += 1;
            let mut request = self.chained.request().set_create().op_newsetelem_do(&header());
            let mut list = request.encode().push_table(&self.table).push_set(&c(name)).nested_elements();
            for (first, last) in part {
                list = push_key(list, *first, 0);
                if let Some(behind) = last.checked_add(1) {
                    list = push_key(list, behind, ELEMENT_INTERVAL_END);
                }
            }
            list.end_nested();
        }
    }

    fn elements(&mut self, set: &str, elements: &BTreeMap<Ipv4Addr, Option<String>>, add: bool) {
        let all: Vec<_> = elements.iter().collect();
        for part in all.chunks(ELEMENTS_A_MESSAGE) {
            self.messages += 1;
            if add {
                let mut request = self.chained.request().set_create().op_newsetelem_do(&header());
                let list = request.encode().push_table(&self.table).push_set(&c(set)).nested_elements();
                push_elements(list, part);
            } else {
                let mut request = self.chained.request().op_delsetelem_do(&header());
                let list = request.encode().push_table(&self.table).push_set(&c(set)).nested_elements();
                push_elements(list, part);
            }
        }
    }

    fn add_chain(&mut self, name: &str) {
        self.messages += 1;
        let mut request = self.chained.request().set_create().op_newchain_do(&header());
        let attributes = request.encode().push_table(&self.table).push_name(&c(name));
        if name == FORWARD {
            attributes
                .nested_hook()
                .push_num(HOOK_FORWARD)
                .push_priority(PRIORITY_FILTER)
                .end_nested()
                .push_policy(NF_ACCEPT)
                .push_type(c"filter");
        }
    }

    fn add_rules(&mut self, chain: &str, rules: &[Rule]) {
        for rule in rules {
            self.messages += 1;
            let mut request = self.chained.request().set_create().set_append().op_newrule_do(&header());
            let list = request
                .encode()
                .push_table(&self.table)
                .push_chain(&c(chain))
                .push_userdata(rule.tag().as_bytes())
                .nested_expressions();
            push_rule(list, rule).end_nested();
        }
    }

    /// The bytes, and the sequence number of the one message that is acknowledged.
    fn finish(mut self) -> (Vec<u8>, u32) {
        self.chained.request().op_batch_end_do(&batch_header()).encode();
        let last = self.first.wrapping_add(self.messages - 1);
        let finished = self.chained.finalize();
        let mut bytes = finished.payload().to_vec();
        // One acknowledgement is enough; thousands would overflow the receive buffer. Errors
        // are told regardless.
        let mut at = 0;
        while at + 16 <= bytes.len() {
            let length = u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize;
            let sequence = u32::from_ne_bytes([bytes[at + 8], bytes[at + 9], bytes[at + 10], bytes[at + 11]]);
            if sequence != last {
                let flags = u16::from_ne_bytes([bytes[at + 6], bytes[at + 7]]) & !NLM_F_ACK;
                bytes[at + 6..at + 8].copy_from_slice(&flags.to_ne_bytes());
            }
            at += length.max(16).next_multiple_of(4);
        }
        (bytes, last)
    }
}

fn push_key<P: Pusher>(list: PushSetelemListElemAttrs<P>, key: u32, flags: u32) -> PushSetelemListElemAttrs<P> {
    let element = list.nested_elem().nested_key().push_value(&key.to_be_bytes()).end_nested();
    if flags == 0 { element.end_nested() } else { element.push_flags(&flags.to_be_bytes()).end_nested() }
}

fn push_elements<P: Pusher>(mut list: PushSetelemListElemAttrs<P>, elements: &[(&Ipv4Addr, &Option<String>)]) {
    for (ip, chain) in elements {
        let element = list.nested_elem().nested_key().push_value(&ip.octets()).end_nested();
        list = match chain {
            None => element.end_nested(),
            Some(chain) => element
                .nested_data()
                .nested_verdict()
                .push_code(VerdictCode::Jump as u32)
                .push_chain(&c(chain))
                .end_nested()
                .end_nested()
                .end_nested(),
        };
    }
    list.end_nested();
}
