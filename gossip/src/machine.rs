//! The gossip machine: foca's SWIM, with sealed packets, self-doubt, and a bounded seed list.
//!
//! Pure: time comes in as a [`Duration`] since any fixed moment of a monotonic clock, packets and
//! ticks come in, effects go out. foca itself runs on a *protocol clock* that stands still while
//! this process does: when the machine is entered late, all timers are moved by the lateness, so
//! that a probe underway gets its full time for an answer after the process resumed.
//!
//! foca's `ChangeSuspectToDown` timers, the only source of verdicts of our own, pass through
//! [`Gossip::deliver`]: dropped while this observer doubts itself, lengthened while it struggles
//! (see `health`). Verdicts of others arrive by gossip, and are shown as suspicions while in doubt.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use foca::{Codec, Foca, Message, NoCustomBroadcast, PostcardCodec, State, Timer};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::config::{Config, Counters, Effect};
use crate::health::Health;
use crate::identity::{IdentityError, NodeIdentity};
use crate::outbox::Outbox;
use crate::seal::{GossipKey, Heard, Kind, Opened, Seal, SealError};
use crate::view::{Liveness, MemberView, View};

/// How often the machine looks after itself, and the longest silence between its timers.
const TICK: Duration = Duration::from_millis(200);
/// Members and seeds that are not answering are announced to this often.
const ANNOUNCE_PERIOD: Duration = Duration::from_millis(1000);
/// … and this often while nobody is known to be alive.
const LONELY_ANNOUNCE_PERIOD: Duration = Duration::from_millis(200);
/// Announcements a round: a join answer is one packet, so a round stays below 16 packets.
const ANNOUNCE_FANOUT: usize = 8;
/// Seeds remembered; the newest are kept.
const MAX_SEEDS: usize = 1024;

type Swim = Foca<NodeIdentity, PostcardCodec, StdRng, NoCustomBroadcast>;
/// Protocol time of a timer, then the order in which timers were set.
type TimerKey = (Duration, u64);

/// One node's part in the cluster's membership.
pub struct Gossip {
    swim: Swim,
    seal: Seal,
    health: Health,
    config: Config,
    rng: StdRng,
    timers: BTreeMap<TimerKey, Pending>,
    timer_sequence: u64,
    /// Real time minus protocol time.
    behind: Duration,
    next_tick: Duration,
    next_announce: Duration,
    seeds: VecDeque<SocketAddr>,
    last_ping: Option<Ping>,
    last_heard: Duration,
    /// Does anybody talk to the identity that we have now?
    connected: bool,
    view: Arc<View>,
    timer_set: Option<Duration>,
    counters: Counters,
}

struct Pending {
    set_at: Duration,
    timer: Timer<NodeIdentity>,
}

#[derive(Clone, Copy)]
struct Ping {
    number: foca::ProbeNumber,
    sent: Duration,
}

impl Gossip {
    /// A machine that starts at `now`; `seed` must be random, it also makes nonces unique.
    /// Call [`Gossip::announce`] next.
    pub fn new(
        identity: NodeIdentity,
        key: &GossipKey,
        config: Config,
        seed: u64,
        now: Duration,
    ) -> Result<Self, IdentityError> {
        identity.check()?;
        let mut rng = StdRng::seed_from_u64(seed);
        let instance = rng.random::<u64>() ^ seed;
        let seal = Seal::new(key, identity.address, instance, identity.epoch);
        let swim_rng = StdRng::seed_from_u64(rng.random());
        let mut gossip = Self {
            swim: Foca::new(identity, config.foca(), swim_rng, PostcardCodec),
            seal,
            health: Health::new(&config),
            config,
            rng,
            timers: BTreeMap::new(),
            timer_sequence: 0,
            behind: Duration::ZERO,
            next_tick: now + TICK,
            next_announce: now,
            seeds: VecDeque::new(),
            last_ping: None,
            last_heard: Duration::ZERO,
            connected: false,
            view: Arc::default(),
            timer_set: None,
            counters: Counters::default(),
        };
        gossip.view = Arc::new(gossip.build_view());
        Ok(gossip)
    }

    /// Who is alive, in this observer's eyes.
    pub fn view(&self) -> Arc<View> {
        self.view.clone()
    }

    /// What this node says about itself now.
    pub fn identity(&self) -> &NodeIdentity {
        self.swim.identity()
    }

    /// The highest epoch used so far: start the next instance with one more.
    pub fn epoch(&self) -> u64 {
        self.seal.epoch()
    }

    /// How far each other node was heard; to be kept over a restart.
    pub fn heard(&self) -> Vec<Heard> {
        self.seal.heard()
    }

    /// What the last instance had [heard](Gossip::heard) is not accepted again. Call it before the
    /// first packet.
    pub fn remember(&mut self, heard: impl IntoIterator<Item = Heard>) {
        self.seal.remember(heard);
    }

    /// Counts since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Does this observer believe its own verdicts?
    pub fn is_healthy(&self) -> bool {
        self.health.is_sound()
    }

    /// Remembers addresses where members may be found, and knocks there until they answer.
    pub fn announce(&mut self, now: Duration, seeds: impl IntoIterator<Item = SocketAddr>) -> Vec<Effect> {
        let own = self.identity().address;
        for seed in seeds {
            if seed != own && !self.seeds.contains(&seed) {
                if self.seeds.len() >= MAX_SEEDS {
                    self.seeds.pop_front();
                }
                self.seeds.push_back(seed);
            }
        }
        self.enter(now, |machine, now, effects| machine.knock(now, effects))
    }

    /// Says something new about this node: the pod CIDR it was given, the APIs it carries.
    pub fn update_identity(
        &mut self,
        now: Duration,
        pod_cidr: Option<ipnetwork::Ipv4Network>,
        api_addresses: Vec<String>,
    ) -> Result<Vec<Effect>, IdentityError> {
        let current = self.identity();
        if current.pod_cidr == pod_cidr && current.api_addresses == api_addresses {
            return Ok(Vec::new());
        }
        let epoch = self.epoch() + 1;
        let new = NodeIdentity { pod_cidr, api_addresses, epoch, ..current.clone() };
        new.check()?;
        Ok(self.enter(now, |machine, now, effects| machine.change_identity(now, new, effects)))
    }

    /// A datagram arrived.
    pub fn on_packet(&mut self, now: Duration, from: SocketAddr, packet: &[u8]) -> Vec<Effect> {
        self.enter(now, |machine, now, effects| {
            match machine.seal.open(from, packet) {
                Ok(opened) => {
                    machine.counters.received += 1;
                    machine.on_opened(now, opened, effects);
                }
                Err(error) => {
                    machine.counters.refused += 1;
                    if let SealError::Stale { source_address, known } = error {
                        machine.tell_epoch(source_address, known, effects);
                    }
                }
            };
        })
    }

    /// The moment of the last [`Effect::SetTimer`] has come (or any other moment).
    pub fn on_timer(&mut self, now: Duration) -> Vec<Effect> {
        self.enter(now, |machine, now, effects| {
            while let Some(entry) = machine.timers.first_entry() {
                if entry.key().0 > now - machine.behind {
                    break;
                }
                let pending = entry.remove();
                machine.deliver(now, pending, effects);
            }
            if now >= machine.next_tick {
                machine.next_tick = now + TICK;
                machine.health.on_tick(now);
                machine.refresh_view(effects);
            }
            if now >= machine.next_announce {
                machine.knock(now, effects);
            }
        })
    }

    // ---- the inside -----------------------------------------------------------------------

    /// Every entry passes here: first the clock is judged, at the end the timer is set.
    fn enter(&mut self, now: Duration, act: impl FnOnce(&mut Self, Duration, &mut Vec<Effect>)) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.judge_clock(now, &mut effects);
        act(self, now, &mut effects);
        let next = self.next_deadline();
        if self.timer_set != Some(next) {
            self.timer_set = Some(next);
            effects.push(Effect::SetTimer(next));
        }
        effects
    }

    fn next_deadline(&self) -> Duration {
        let own = self.next_tick.min(self.next_announce);
        match self.timers.first_key_value() {
            Some(((at, _), _)) => own.min(*at + self.behind),
            None => own,
        }
    }

    /// Moves the protocol clock back by our own lateness, and draws the conclusions.
    fn judge_clock(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let late = now.saturating_sub(self.next_deadline());
        if !self.health.is_late(late) {
            return;
        }
        self.behind += late;
        self.next_tick += late;
        self.next_announce += late;
        if let Some(ping) = &mut self.last_ping {
            ping.sent += late;
        }
        let was_sound = self.health.is_sound();
        if self.health.on_lateness(late, now) {
            self.counters.doubts += u64::from(was_sound);
            let before = self.timers.len();
            self.timers.retain(|_, pending| !matches!(pending.timer, Timer::ChangeSuspectToDown { .. }));
            self.counters.suspicions_dropped += (before - self.timers.len()) as u64;
            // The probe underway is from before: its answer proves nothing about now.
            self.last_ping = None;
            self.refresh_view(effects);
        }
    }

    fn on_opened(&mut self, now: Duration, opened: Opened, effects: &mut Vec<Effect>) {
        match opened.kind {
            Kind::StaleEpoch => self.on_stale_epoch(now, &opened.payload, effects),
            Kind::Swim => {
                let mut rest = opened.payload.as_slice();
                // What is inside must be by whom the envelope says, and fit into our packets.
                let Ok(header) = Codec::<NodeIdentity>::decode_header(&mut PostcardCodec, &mut rest) else {
                    self.counters.refused += 1;
                    return;
                };
                if header.src.address != opened.source || header.src.check().is_err() {
                    self.counters.refused += 1;
                    return;
                }
                self.last_heard = now;
                let answered = match (&header.message, self.last_ping) {
                    (Message::Ack(number) | Message::ForwardedAck { probe_number: number, .. }, Some(ping))
                        if *number == ping.number =>
                    {
                        Some(ping.sent)
                    }
                    _ => None,
                };
                if let Some(sent) = answered {
                    let was_sound = self.health.is_sound();
                    self.health.on_ack(opened.source, sent, self.swim.num_members());
                    if was_sound != self.health.is_sound() {
                        self.refresh_view(effects);
                    }
                }
                self.swim(now, effects, |swim, outbox| {
                    // A peer's malformed or unexpected packet is its problem, not ours.
                    let _ = swim.handle_data(&opened.payload, outbox);
                });
            }
        }
    }

    /// We started with a lower epoch than the cluster has seen of us: jump above it.
    fn on_stale_epoch(&mut self, now: Duration, payload: &[u8], effects: &mut Vec<Effect>) {
        let Ok(known) = payload.try_into().map(u64::from_le_bytes) else {
            self.counters.refused += 1;
            return;
        };
        if known <= self.epoch() || known == u64::MAX {
            return;
        }
        let epoch = known + 1;
        let new = NodeIdentity { epoch, ..self.identity().clone() };
        self.change_identity(now, new, effects);
    }

    fn tell_epoch(&mut self, to: SocketAddr, sealed_with: u64, effects: &mut Vec<Effect>) {
        let of_identity = self
            .swim
            .iter_membership_state()
            .find(|member| member.id().address == to)
            .map_or(0, |member| member.id().epoch);
        let known = sealed_with.max(of_identity);
        self.send(to, Kind::StaleEpoch, &known.to_le_bytes(), effects);
    }

    fn change_identity(&mut self, now: Duration, new: NodeIdentity, effects: &mut Vec<Effect>) {
        self.swim(now, effects, |swim, outbox| {
            let _ = swim.change_identity(new, outbox);
        });
        // Until somebody knows the new identity nobody answers to it: knock, and at all doors.
        self.connected = false;
        self.knock(now, effects);
    }

    /// Announces this node to seeds and remembered members that are not known to be alive, or,
    /// when nobody is known to be alive, to all.
    fn knock(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let alive: Vec<SocketAddr> = self.swim.iter_members().map(|member| member.id().address).collect();
        let mut doors: Vec<SocketAddr> =
            self.seeds.iter().filter(|seed| !self.connected || !alive.contains(seed)).copied().collect();
        if !self.connected {
            doors.extend(alive.iter().filter(|address| !self.seeds.contains(address)));
        }
        while doors.len() > ANNOUNCE_FANOUT {
            doors.swap_remove(self.rng.random_range(0..doors.len()));
        }
        for door in doors {
            self.swim(now, effects, |swim, outbox| {
                // It fails only when the packet cannot be encoded, and this one holds two identities:
                // it always can. Whoever is not reached is tried again at the next knock.
                let _ = swim.announce(NodeIdentity::nameless(door), outbox);
            });
        }
        let period = if self.connected { ANNOUNCE_PERIOD } else { LONELY_ANNOUNCE_PERIOD };
        self.next_announce = now + period;
    }

    /// Hands a due timer to foca, unless it is a verdict that this observer should not pass.
    fn deliver(&mut self, now: Duration, pending: Pending, effects: &mut Vec<Effect>) {
        if let Timer::ChangeSuspectToDown { .. } = &pending.timer {
            if !self.health.is_sound() {
                self.counters.suspicions_dropped += 1;
                return;
            }
            let due = pending.set_at + self.config.suspicion * self.health.multiplier();
            if due > now - self.behind {
                self.timer_sequence += 1;
                self.timers.insert((due, self.timer_sequence), pending);
                return;
            }
        }
        self.swim(now, effects, |swim, outbox| {
            // An interrupted probe cycle is reported as an error and recovers by itself.
            let _ = swim.handle_timer(pending.timer, outbox);
        });
    }

    /// Calls into foca and carries out what it asks for.
    fn swim(&mut self, now: Duration, effects: &mut Vec<Effect>, act: impl FnOnce(&mut Swim, &mut Outbox)) {
        let mut outbox = Outbox::default();
        act(&mut self.swim, &mut outbox);
        // One and the same: a notice of an epoch that we have already is then known to be no news.
        self.seal.raise_epoch(self.swim.identity().epoch);
        if outbox.probe_failed {
            let silent = self.last_ping.is_some_and(|ping| self.last_heard < ping.sent);
            self.health.on_probe_failed(silent, self.swim.num_members());
        }
        if let Some(number) = outbox.pinged {
            self.last_ping = Some(Ping { number, sent: now });
        }
        let set_at = now - self.behind;
        for (after, timer) in outbox.timers {
            self.set_timer(set_at, after, timer);
        }
        for (to, data) in outbox.sends {
            self.send(to.address, Kind::Swim, &data, effects);
        }
        if let Some(connected) = outbox.connected {
            self.connected = connected;
            self.next_announce = self.next_announce.min(now + LONELY_ANNOUNCE_PERIOD);
        }
        if outbox.changed || outbox.connected.is_some() {
            self.refresh_view(effects);
        }
    }

    fn set_timer(&mut self, set_at: Duration, after: Duration, timer: Timer<NodeIdentity>) {
        // A suspect that fails another probe is suspected since the first.
        let suspected_already = matches!(timer, Timer::ChangeSuspectToDown { .. })
            && self.timers.values().any(|pending| pending.timer == timer);
        if !suspected_already {
            self.timer_sequence += 1;
            self.timers.insert((set_at + after, self.timer_sequence), Pending { set_at, timer });
        }
    }

    fn send(&mut self, to: SocketAddr, kind: Kind, payload: &[u8], effects: &mut Vec<Effect>) {
        // The limits make sealing infallible; a packet that cannot be sealed is a lost packet.
        if let Ok(packet) = self.seal.seal(to, kind, payload) {
            self.counters.sent += 1;
            effects.push(Effect::Send { to, packet });
        }
    }

    fn refresh_view(&mut self, effects: &mut Vec<Effect>) {
        let view = self.build_view();
        if view != *self.view {
            self.view = Arc::new(view);
            if !effects.contains(&Effect::ViewChanged) {
                effects.push(Effect::ViewChanged);
            }
        }
    }

    fn build_view(&self) -> View {
        let healthy = self.health.is_sound();
        let mut members = vec![MemberView {
            identity: self.identity().clone(),
            liveness: Liveness::Alive,
            incarnation: incarnation(self.identity().epoch, 0),
        }];
        for member in self.swim.iter_membership_state() {
            if member.id().name.is_empty() || member.id().address == self.identity().address {
                continue;
            }
            let liveness = match member.state() {
                State::Alive => Liveness::Alive,
                State::Suspect => Liveness::Suspect,
                State::Down => self.while_in_doubt(member.id()),
            };
            members.push(MemberView {
                identity: member.id().clone(),
                liveness,
                incarnation: incarnation(member.id().epoch, member.incarnation()),
            });
        }
        View::build(members, healthy)
    }

    /// In doubt a death that is news is shown as a suspicion; one known before stays.
    fn while_in_doubt(&self, identity: &NodeIdentity) -> Liveness {
        let known_before = self.view.member(&identity.name).is_some_and(|member| member.liveness == Liveness::Dead);
        if self.health.is_sound() || known_before { Liveness::Dead } else { Liveness::Suspect }
    }
}

/// One number that grows with restarts and, within one, with refutations.
fn incarnation(epoch: u64, of_swim: u16) -> u64 {
    epoch.saturating_mul(1 << 16).saturating_add(u64::from(of_swim))
}
