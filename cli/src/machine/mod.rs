//! The machine that this program runs on: what it must have to carry a node, who owns which file
//! of the configuration, and the services that an installation brings.

pub mod facts;
pub mod owners;
pub mod ports;
pub mod services;
