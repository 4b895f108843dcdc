//! The protocol between the node agent and `trellis-shim`, one shim per Pod.
//!
//! One unix stream socket (`<shim dir>/shim.sock`), frames of a 4-byte big-endian length and a
//! JSON text; descriptors travel beside a frame in SCM_RIGHTS. A connection carries one request
//! at a time: the reply comes before the next request is read. Requests that wait
//! ([`Request::Wait`], [`Request::WaitExec`]) and the event stream ([`Request::Events`]) are sent
//! on connections of their own. The first request is [`Request::Hello`]: both sides speak the
//! newest version that both know, and an agent speaks the current version and the one before,
//! since shims outlive the agent that launched them.
//!
//! What is where: [`types`] and [`records`] the words, [`codec`] frames, [`client`] the blocking client,
//! [`launch`] the start of a shim, [`defaults`] what a container gets when nobody says otherwise
//! (capabilities, seccomp filter, masked paths, mounts, devices).
//!
//! Left out on purpose: nothing here decides anything about Pods; the agent's lifecycle machine does.
#![forbid(unsafe_code)]

pub mod client;
pub mod codec;
pub mod defaults;
pub mod launch;
pub mod records;
pub mod seccomp;
pub mod types;

pub use client::{Client, ClientError, EventStream};
pub use records::*;
pub use types::*;

/// The protocol version this build speaks best.
pub const VERSION: u32 = 1;

/// The oldest protocol version this build still speaks (N-1; there is none before 1).
pub const OLDEST_VERSION: u32 = 1;

/// The largest frame either side accepts: a container spec with environment and seccomp filter
/// is below 200 kB; Kubernetes bounds an object at 1.5 MB.
pub const MAX_FRAME_BYTES: usize = 2 * 1024 * 1024;

/// The most descriptors that travel beside one frame (stdin, stdout, stderr and one spare).
pub const MAX_FRAME_FDS: usize = 4;

/// The newest version in both lists, or `None`.
#[must_use]
pub fn negotiate(theirs: &[u32]) -> Option<u32> {
    theirs.iter().copied().filter(|v| (OLDEST_VERSION..=VERSION).contains(v)).max()
}

/// What this build offers in [`Request::Hello`].
#[must_use]
pub fn offered_versions() -> Vec<u32> {
    (OLDEST_VERSION..=VERSION).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_wins() {
        assert_eq!(negotiate(&[1, 2, 3]), Some(1));
        assert_eq!(negotiate(&[7, 9]), None);
        assert_eq!(negotiate(&[]), None);
        assert_eq!(negotiate(&offered_versions()), Some(VERSION));
    }
}
