//! Which member the writes of a busy client go to: the one that leads, once it is found, for a write
//! through another costs a hop more, and batches of their own at each member. A client that writes now
//! and then asks no further than the member it uses anyway.
//!
//! Pure: it is told what happened and when, and holds what the driver gives it (`W`, a stream). The
//! members are tried in turn, since a client's way to one need not be an address that members know.

use std::time::{Duration, Instant};

/// So many writes one after the other, each begun beside others, are worth a connection more.
const BUSY_WRITES: u32 = 16;
/// Until the next try after one that led nowhere; by then an election is over.
const PAUSE: Duration = Duration::from_secs(2);

/// A stream to a member that may lead.
struct Line<W> {
    id: u64,
    stream: W,
    leads: bool,
}

/// Numbers streams, so that news of one that was given up is told apart.
pub(super) struct Route<W> {
    last_id: u64,
    /// The stream to the member in use.
    home: u64,
    /// The member in use has said that it does not lead.
    elsewhere: bool,
    /// Writes in a row that were begun beside others.
    busy: u32,
    line: Option<Line<W>>,
    /// Which member to try, counted from the one after that in use.
    offset: usize,
    /// Members that were tried in vain in this round.
    failures: usize,
    not_before: Option<Instant>,
}

impl<W> Default for Route<W> {
    fn default() -> Self {
        Self { last_id: 0, home: 0, elsewhere: false, busy: 0, line: None, offset: 0, failures: 0, not_before: None }
    }
}

impl<W> Route<W> {
    /// A number for a new stream to the member in use.
    pub(super) fn new_home(&mut self) -> u64 {
        self.last_id += 1;
        self.home = self.last_id;
        self.elsewhere = false;
        self.home
    }

    /// The stream to the leader, if there is one.
    pub(super) fn leader(&self) -> Option<(u64, &W)> {
        self.line.as_ref().filter(|l| l.leads).map(|l| (l.id, &l.stream))
    }

    /// A write begins on the stream to the member in use, `beside` others or alone.
    pub(super) fn begins(&mut self, beside: bool) {
        self.busy = if beside { self.busy.saturating_add(1) } else { 0 };
    }

    /// The member to open a stream to, out of `members` with the one in use at `current`: to be
    /// given to [`Route::opens`].
    pub(super) fn wanted(&self, current: usize, members: usize, now: Instant) -> Option<usize> {
        let time = self.not_before.is_none_or(|t| t <= now);
        let wanted = self.busy >= BUSY_WRITES && self.elsewhere && self.line.is_none() && members > 1 && time;
        wanted.then(|| (current + 1 + self.offset % (members - 1)) % members)
    }

    /// A stream is opened; `stream` makes it, of its number.
    pub(super) fn opens(&mut self, stream: impl FnOnce(u64) -> W) {
        self.last_id += 1;
        let id = self.last_id;
        self.line = Some(Line { id, stream: stream(id), leads: false });
    }

    /// The member at the other end of stream `id` says whether it leads, out of so many members.
    pub(super) fn says(&mut self, id: u64, leads: bool, members: usize, now: Instant) {
        if id == self.home {
            self.elsewhere = !leads;
            if leads {
                self.line = None;
                self.failures = 0;
            }
        }
        match &mut self.line {
            Some(line) if line.id == id && leads => {
                line.leads = true;
                self.failures = 0;
            }
            Some(line) if line.id == id => self.next(members, now),
            _ => {}
        }
    }

    fn next(&mut self, members: usize, now: Instant) {
        self.line = None;
        self.offset = self.offset.wrapping_add(1);
        self.failures += 1;
        if self.failures + 1 >= members {
            self.failures = 0;
            self.not_before = Some(now + PAUSE);
        }
    }

    /// Stream `id` broke, or could not be opened, or its member does not do what it is asked.
    pub(super) fn broke(&mut self, id: u64, members: usize, now: Instant) {
        if self.line.as_ref().is_some_and(|l| l.id == id) {
            self.next(members, now);
            self.not_before = Some(now + PAUSE);
        }
    }

    /// Nobody used stream `id` for a while; nobody can, where its member does not say that it leads.
    pub(super) fn idle(&mut self, id: u64, members: usize, now: Instant) {
        match self.line.as_ref().filter(|l| l.id == id).map(|l| l.leads) {
            Some(true) => (self.line, self.busy) = (None, 0),
            Some(false) => self.next(members, now),
            None => {}
        }
    }

    /// Other members are known now.
    pub(super) fn forget(&mut self) {
        self.line = None;
        self.failures = 0;
        self.not_before = None;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    /// A client of three members that uses the first, which says that it does not lead.
    fn busy(route: &mut Route<&'static str>, now: Instant) -> u64 {
        let home = route.new_home();
        route.says(home, false, 3, now);
        (0..BUSY_WRITES).for_each(|_| route.begins(true));
        home
    }

    fn open(route: &mut Route<&'static str>, name: &'static str) -> u64 {
        let mut opened = 0;
        route.opens(|id| {
            opened = id;
            name
        });
        opened
    }

    /// A busy client that writes to the second member, which leads; the streams to the first and to that.
    fn following(route: &mut Route<&'static str>, now: Instant) -> (u64, u64) {
        let home = busy(route, now);
        let id = open(route, "n2");
        route.says(id, true, 3, now);
        (home, id)
    }

    #[test]
    fn who_writes_now_and_then_stays_where_it_is() {
        let (mut route, now) = (Route::<&str>::default(), Instant::now());
        let home = route.new_home();
        route.says(home, false, 3, now);
        for _ in 0..1_000 {
            route.begins(true);
            route.begins(true);
            route.begins(false);
            assert_eq!(route.wanted(0, 3, now), None);
        }
    }

    #[test]
    fn members_are_tried_in_turn_until_one_leads() {
        let (mut route, now) = (Route::default(), Instant::now());
        busy(&mut route, now);
        assert_eq!(route.wanted(0, 3, now), Some(1));
        let second = open(&mut route, "n2");
        // One at a time, and none is used before it says that it leads.
        assert_eq!(route.wanted(0, 3, now), None);
        assert!(route.leader().is_none());
        route.says(second, false, 3, now);
        assert_eq!(route.wanted(0, 3, now), Some(2));
        let third = open(&mut route, "n3");
        route.says(third, true, 3, now);
        assert_eq!(route.leader(), Some((third, &"n3")));
        // Of one that was given up nothing is believed.
        route.says(second, false, 3, now);
        route.broke(second, 3, now);
        route.idle(second, 3, now);
        assert!(route.leader().is_some());
        // It leads no more: the other one is asked before it again.
        route.says(third, false, 3, now);
        assert_eq!(route.wanted(0, 3, now), Some(1));
    }

    #[test]
    fn when_nobody_leads_the_next_round_waits() {
        let (mut route, now) = (Route::default(), Instant::now());
        busy(&mut route, now);
        for expected in [1, 2] {
            assert_eq!(route.wanted(0, 3, now), Some(expected));
            let id = open(&mut route, "?");
            route.says(id, false, 3, now);
        }
        assert_eq!(route.wanted(0, 3, now), None);
        assert_eq!(route.wanted(0, 3, now + PAUSE), Some(1));
    }

    #[test]
    fn a_leader_that_breaks_is_not_tried_at_once_and_not_first() {
        let (mut route, now) = (Route::default(), Instant::now());
        busy(&mut route, now);
        let second = open(&mut route, "n2");
        route.says(second, false, 3, now);
        let third = open(&mut route, "n3");
        route.says(third, true, 3, now);
        route.broke(third, 3, now);
        assert!(route.leader().is_none());
        assert_eq!(route.wanted(0, 3, now), None);
        assert_eq!(route.wanted(0, 3, now + PAUSE), Some(1));
    }

    #[test]
    fn a_member_that_says_nothing_is_passed_over() {
        let (mut route, now) = (Route::default(), Instant::now());
        busy(&mut route, now);
        let second = open(&mut route, "n2");
        assert!(route.leader().is_none());
        route.idle(second, 3, now);
        assert_eq!(route.wanted(0, 3, now), Some(2));
    }

    #[test]
    fn a_member_in_use_that_leads_is_enough() {
        let (mut route, now) = (Route::default(), Instant::now());
        let (home, _) = following(&mut route, now);
        route.says(home, true, 3, now);
        assert!(route.leader().is_none());
        assert_eq!(route.wanted(0, 3, now), None);
        // Another member is used now: what the last one said does not count.
        route.says(home, false, 3, now);
        route.new_home();
        assert_eq!(route.wanted(1, 3, now), None);
    }

    #[test]
    fn an_idle_stream_is_closed_until_there_is_much_to_write_again() {
        let (mut route, now) = (Route::default(), Instant::now());
        let (_, id) = following(&mut route, now);
        route.idle(id, 3, now);
        assert!(route.leader().is_none());
        assert_eq!(route.wanted(0, 3, now), None);
        (0..BUSY_WRITES).for_each(|_| route.begins(true));
        assert_eq!(route.wanted(0, 3, now), Some(1));
        // A single member leaves no choice.
        assert_eq!(route.wanted(0, 1, now), None);
    }
}
