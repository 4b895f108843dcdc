//! The pod network of one node: addresses, links, routes, policy; and its part in gossip.
//!
//! Pure planners ([`ipam`], [`links`], [`routes`], [`policy`], [`cluster`]) say what to do; the
//! [`engine`], one thread, owns all state and carries it out through [`kernel`], the only code
//! that speaks netlink or nftables. Around it: watches of the API ([`api`]), gossip ([`member`]),
//! the sockets of the node ([`serve`], [`handoff`]) and kernel events ([`drift`]).
#![forbid(unsafe_code)]

pub mod api;
pub mod cluster;
pub mod drift;
pub mod engine;
pub mod handoff;
pub mod ipam;
pub mod kernel;
pub mod links;
pub mod member;
pub mod policy;
pub mod renew;
pub mod routes;
pub mod serve;
pub mod store;
pub mod withdraw;
