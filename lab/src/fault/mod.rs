//! What can be broken between the nodes: ports moved off the switch ([`underlay`]), and wires
//! that lose or hold up packets ([`state`] says which, the rest does it).

mod filter;
mod netem;
pub mod state;
pub mod underlay;
mod wire;
