//! How many may be at something at once: in all, and from one address, so that a peer that takes all
//! it can get leaves room for the others. And how long a place may be held.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Refusals are told this often: whoever is refused comes again, and must not fill the log.
const TELL_PERIOD: Duration = Duration::from_secs(1);
/// Leading bits that one IPv6 host has to itself.
const IPV6_PREFIX_BITS: u32 = 64;

/// Places, counted.
#[derive(Debug)]
pub(crate) struct Quota {
    total: usize,
    per_source: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    taken: usize,
    /// No more entries than places are taken.
    by_source: HashMap<IpAddr, usize>,
    refused: u64,
    told: Option<Instant>,
}

/// No place is free.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full {
    /// How many were refused since that was last told, when it is time to tell again.
    pub tell: Option<u64>,
}

impl Quota {
    /// `total` places, of which one address may take `per_source`.
    pub fn new(total: usize, per_source: usize) -> Arc<Self> {
        Arc::new(Self { total, per_source, state: Mutex::default() })
    }

    /// Takes a place, if one is free. Without an address (a unix socket) only the total counts.
    pub fn take(self: &Arc<Self>, source: Option<IpAddr>, now: Instant) -> Result<Slot, Full> {
        let source = source.map(host_of);
        let mut state = self.state();
        let of_source = source.map_or(0, |source| state.by_source.get(&source).copied().unwrap_or(0));
        if state.taken >= self.total || of_source >= self.per_source {
            return Err(state.refuse(now));
        }
        state.taken += 1;
        if let Some(source) = source {
            state.by_source.insert(source, of_source + 1);
        }
        Ok(Slot { quota: Arc::clone(self), source })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Counting panics nowhere.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn refuse(&mut self, now: Instant) -> Full {
        self.refused += 1;
        if self.told.is_some_and(|told| now.saturating_duration_since(told) < TELL_PERIOD) {
            return Full { tell: None };
        }
        self.told = Some(now);
        Full { tell: Some(std::mem::take(&mut self.refused)) }
    }
}

/// A host has many IPv6 addresses.
fn host_of(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << (128 - IPV6_PREFIX_BITS))).into(),
        v4 => v4,
    }
}

/// A taken place; free again when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    quota: Arc<Quota>,
    source: Option<IpAddr>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.quota.state();
        state.taken = state.taken.saturating_sub(1);
        if let Some(source) = self.source
            && let Some(count) = state.by_source.get_mut(&source)
        {
            *count -= 1;
            if *count == 0 {
                state.by_source.remove(&source);
            }
        }
    }
}

/// A place that ends.
#[derive(Debug)]
pub(crate) struct Lease {
    _slot: Slot,
    ends: Pin<Box<tokio::time::Sleep>>,
}

impl Lease {
    /// For as long as `time`, from now.
    pub fn new(slot: Slot, time: Duration) -> Self {
        Self { _slot: slot, ends: Box::pin(tokio::time::sleep(time)) }
    }

    /// Ready when the time is over.
    pub fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.ends.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn one_source_leaves_room_for_the_others_and_all_together_have_a_limit() {
        let quota = Quota::new(4, 2);
        let now = Instant::now();
        let first = quota.take(ip("10.0.0.1"), now).unwrap();
        let _second = quota.take(ip("::ffff:10.0.0.1"), now).unwrap();
        assert!(quota.take(ip("10.0.0.1"), now).is_err(), "no third for one address");
        let _other = quota.take(ip("2001:db8::1"), now).unwrap();
        let _socket = quota.take(None, now).unwrap();
        assert!(quota.take(ip("10.0.0.3"), now).is_err(), "no fifth in all");
        drop(first);
        let again = quota.take(ip("10.0.0.1"), now).unwrap();
        assert!(quota.take(ip("10.0.0.1"), now).is_err());
        drop(again);
        let _same_host = quota.take(ip("2001:db8::2"), now).unwrap();
        assert!(quota.take(ip("2001:db8::3"), now).is_err(), "a /64 is one host");
    }

    #[test]
    fn sources_are_forgotten_with_their_places_and_refusals_told_once_a_second() {
        let quota = Quota::new(1, 1);
        let now = Instant::now();
        for n in 0..1000_u32 {
            drop(quota.take(Some(IpAddr::V4(n.into())), now).unwrap());
        }
        assert!(quota.state().by_source.is_empty());
        let _slot = quota.take(None, now).unwrap();
        let refused = |later| quota.take(None, now + Duration::from_millis(later)).unwrap_err().tell;
        assert_eq!([refused(0), refused(10), refused(999), refused(1000)], [Some(1), None, None, Some(3)]);
    }

    #[tokio::test]
    async fn a_lease_ends() {
        let slot = Quota::new(1, 1).take(None, Instant::now()).unwrap();
        let mut lease = Lease::new(slot, Duration::from_millis(20));
        let pending = std::future::poll_fn(|cx| Poll::Ready(lease.poll_end(cx).is_pending())).await;
        assert!(pending, "not yet");
        std::future::poll_fn(|cx| lease.poll_end(cx)).await;
    }
}
