//! The machine's timing, and what it tells its driver.

use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use crate::seal::MAX_PAYLOAD_BYTES;

/// The timing of the protocol.
#[derive(Clone, Debug)]
pub struct Config {
    /// One member is probed per period. 200 ms: in a small cluster detection also waits until
    /// somebody probes the victim.
    pub probe_period: Duration,
    /// When a direct probe counts as unanswered and others are asked to try.
    pub probe_rtt: Duration,
    /// How long a suspect may take to refute, at an observer in good health.
    pub suspicion: Duration,
    /// How long dead members are remembered (and invited back).
    pub remember_dead: Duration,
    /// A timer of our own that is later than this costs a point of health. 100 ms: more than a
    /// probe's round trip allowance is gone.
    pub late: Duration,
    /// One that is later than this means that we were stopped, or starved for whole probe periods:
    /// everything that was underway is worthless, and we doubt ourselves.
    pub pause: Duration,
    /// Longest doubt with punctual timers: by then the others are really gone.
    pub max_doubt: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            probe_period: Duration::from_millis(200),
            probe_rtt: Duration::from_millis(80),
            suspicion: Duration::from_millis(750),
            remember_dead: Duration::from_secs(24 * 3600),
            late: Duration::from_millis(100),
            pause: Duration::from_millis(400),
            max_doubt: Duration::from_secs(10),
        }
    }
}

impl Config {
    /// For machines that answer `factor` times as slowly: everything that is borne lasts as much
    /// longer. How long the dead are remembered is no matter of speed.
    #[must_use]
    pub fn stretched(&self, factor: u32) -> Self {
        Self {
            probe_period: self.probe_period.saturating_mul(factor),
            probe_rtt: self.probe_rtt.saturating_mul(factor),
            suspicion: self.suspicion.saturating_mul(factor),
            remember_dead: self.remember_dead,
            late: self.late.saturating_mul(factor),
            pause: self.pause.saturating_mul(factor),
            max_doubt: self.max_doubt.saturating_mul(factor),
        }
    }

    pub(crate) fn foca(&self) -> foca::Config {
        let one = NonZeroUsize::MIN;
        foca::Config {
            probe_period: self.probe_period,
            probe_rtt: self.probe_rtt,
            num_indirect_probes: one.saturating_add(2),
            max_transmissions: NonZeroU8::MIN.saturating_add(9),
            suspect_to_down_after: self.suspicion,
            remove_down_after: Some(self.remember_dead),
            max_packet_size: one.saturating_add(MAX_PAYLOAD_BYTES - 1),
            notify_down_members: true,
            periodic_announce: Some(foca::PeriodicParams { frequency: Duration::from_secs(5), num_members: one }),
            periodic_announce_to_down_members: Some(foca::PeriodicParams {
                frequency: Duration::from_secs(1),
                num_members: one.saturating_add(1),
            }),
            periodic_gossip: Some(foca::PeriodicParams {
                frequency: Duration::from_millis(100),
                num_members: one.saturating_add(2),
            }),
        }
    }
}

/// What the driver is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send one UDP datagram.
    Send {
        /// Where to.
        to: SocketAddr,
        /// What.
        packet: Vec<u8>,
    },
    /// [`Gossip::view`](crate::Gossip::view) answers something new.
    ViewChanged,
    /// Call [`Gossip::on_timer`](crate::Gossip::on_timer) at this moment; it replaces the one asked for before.
    SetTimer(Duration),
}

/// What was counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets handed out.
    pub sent: u64,
    /// Packets accepted.
    pub received: u64,
    /// Packets refused as forged, replayed, stale, misdirected or malformed.
    pub refused: u64,
    /// Times this observer began to doubt itself.
    pub doubts: u64,
    /// Own suspicions that were dropped in doubt.
    pub suspicions_dropped: u64,
}
