//! Rules as nftables expressions: load into a register, mask, compare, look up, decide.

use netlink_bindings::nftables::{
    CmpOps, CtKeys, MetaKeys, PayloadBase, PushExprListAttrs, Registers, RejectTypes, VerdictCode,
};
use netlink_bindings::traits::Pusher;
use netlink_bindings::utils::push_header;
use trellis_model::policy::PortRange;

use super::nft::c;
use crate::policy::{Direction, LOCAL, Rule};

const NFPROTO_IPV4: u8 = 2;
/// ct state bits as nftables counts them (NF_CT_STATE_BIT).
const STATE_INVALID: u32 = 1;
const STATE_ESTABLISHED_RELATED: u32 = 2 | 4;
const STATE_NEW: u32 = 8;
const TCP: u8 = 6;
const TCP_FLAG_SYN: u8 = 0x02;
const REGISTER: u32 = Registers::Reg1 as u32;

/// Where the address of an end stands in an IPv4 header.
fn address_offset(source: bool) -> u32 {
    if source { 12 } else { 16 }
}

/// Appends a rule's expressions.
pub(super) fn push_rule<P: Pusher>(list: PushExprListAttrs<P>, rule: &Rule) -> PushExprListAttrs<P> {
    match rule {
        Rule::Established => {
            let list = ct_state(list, STATE_ESTABLISHED_RELATED);
            verdict(list, VerdictCode::Accept)
        }
        Rule::ResetStray(direction) => {
            let list = own_address_in_local(list, *direction);
            let list = meta_is(list, MetaKeys::L4Proto as u32, TCP);
            let list = payload(list, PayloadBase::TransportHeader, 13, 1);
            let list = masked(list, &[TCP_FLAG_SYN]);
            let list = compare(list, CmpOps::Eq, &[0]);
            let list = ct_state(list, STATE_NEW);
            list.nested_elem()
                .nested_data_reject()
                .push_type(RejectTypes::TcpRst as u32)
                .push_icmp_code(0)
                .end_nested()
                .end_nested()
        }
        Rule::DropInvalid(direction) => {
            let list = own_address_in_local(list, *direction);
            let list = ct_state(list, STATE_INVALID);
            verdict(list, VerdictCode::Drop)
        }
        Rule::Dispatch(direction) => {
            let list = meta_is(list, MetaKeys::Nfproto as u32, NFPROTO_IPV4);
            let list = payload(list, PayloadBase::NetworkHeader, address_offset(*direction == Direction::Egress), 4);
            lookup(list, direction.map(), true)
        }
        Rule::Allow { direction, peers, ports } => {
            let mut list = list;
            if let Some(set) = peers {
                let offset = address_offset(*direction == Direction::Ingress);
                list = payload(list, PayloadBase::NetworkHeader, offset, 4);
                list = lookup(list, set, false);
            }
            if let Some(range) = ports {
                list = port_in(list, range);
            }
            verdict(list, VerdictCode::Return)
        }
        Rule::Deny => verdict(list, VerdictCode::Drop),
    }
}

fn own_address_in_local<P: Pusher>(list: PushExprListAttrs<P>, direction: Direction) -> PushExprListAttrs<P> {
    let list = meta_is(list, MetaKeys::Nfproto as u32, NFPROTO_IPV4);
    let offset = address_offset(direction == Direction::Egress);
    let list = payload(list, PayloadBase::NetworkHeader, offset, 4);
    lookup(list, LOCAL, false)
}

fn port_in<P: Pusher>(list: PushExprListAttrs<P>, range: &PortRange) -> PushExprListAttrs<P> {
    let list = meta_is(list, MetaKeys::L4Proto as u32, range.protocol.number());
    let list = payload(list, PayloadBase::TransportHeader, 2, 2);
    if range.first == range.last {
        return compare(list, CmpOps::Eq, &range.first.to_be_bytes());
    }
    let list = compare(list, CmpOps::Gte, &range.first.to_be_bytes());
    compare(list, CmpOps::Lte, &range.last.to_be_bytes())
}

fn meta_is<P: Pusher>(list: PushExprListAttrs<P>, key: u32, value: u8) -> PushExprListAttrs<P> {
    let list = list.nested_elem().nested_data_meta().push_dreg(REGISTER).push_key(key).end_nested().end_nested();
    compare(list, CmpOps::Eq, &[value])
}

fn payload<P: Pusher>(list: PushExprListAttrs<P>, base: PayloadBase, offset: u32, length: u32) -> PushExprListAttrs<P> {
    list.nested_elem()
        .nested_data_payload()
        .push_dreg(REGISTER)
        .push_base(base as u32)
        .push_offset(offset)
        .push_len(length)
        .end_nested()
        .end_nested()
}

fn masked<P: Pusher>(list: PushExprListAttrs<P>, mask: &[u8]) -> PushExprListAttrs<P> {
    let zero = vec![0; mask.len()];
    list.nested_elem()
        .nested_data_bitwise()
        .push_sreg(REGISTER)
        .push_dreg(REGISTER)
        .push_len(mask.len() as u32)
        .nested_mask()
        .push_value(mask)
        .end_nested()
        .nested_xor()
        .push_value(&zero)
        .end_nested()
        .end_nested()
        .end_nested()
}

fn compare<P: Pusher>(list: PushExprListAttrs<P>, op: CmpOps, value: &[u8]) -> PushExprListAttrs<P> {
    list.nested_elem()
        .nested_data_cmp()
        .push_sreg(REGISTER)
        .push_op(op as u32)
        .nested_data()
        .push_value(value)
        .end_nested()
        .end_nested()
        .end_nested()
}

/// With `verdict`, what the map says of the key is carried out.
fn lookup<P: Pusher>(list: PushExprListAttrs<P>, set: &str, verdict: bool) -> PushExprListAttrs<P> {
    let mut expression = list.nested_elem().nested_data_lookup().push_set(&c(set));
    // netlink-bindings 0.3.5 follows a specification that numbers these two wrongly (as 3 and 4);
    // linux/netfilter/nf_tables.h: NFTA_LOOKUP_SREG is 2, NFTA_LOOKUP_DREG is 3.
    let mut register = |attribute: u16, register: u32| {
        push_header(expression.as_vec_mut(), attribute, 4);
        expression.as_vec_mut().extend_from_slice(&register.to_be_bytes());
    };
    register(2, REGISTER);
    if verdict {
        register(3, Registers::RegVerdict as u32);
    }
    expression.end_nested().end_nested()
}

fn ct_state<P: Pusher>(list: PushExprListAttrs<P>, bits: u32) -> PushExprListAttrs<P> {
    let list = list
        .nested_elem()
        .nested_data_ct()
        .push_dreg(REGISTER)
        .push_key(CtKeys::State as u32)
        .end_nested()
        .end_nested();
    let list = masked(list, &bits.to_ne_bytes());
    compare(list, CmpOps::Neq, &[0; 4])
}

fn verdict<P: Pusher>(list: PushExprListAttrs<P>, code: VerdictCode) -> PushExprListAttrs<P> {
    list.nested_elem()
        .nested_data_immediate()
        .push_dreg(Registers::RegVerdict as u32)
        .nested_data()
        .nested_verdict()
        .push_code(code as u32)
        .end_nested()
        .end_nested()
        .end_nested()
        .end_nested()
}
