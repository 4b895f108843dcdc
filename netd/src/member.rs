//! Drives the gossip machine: one UDP socket, one timer.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnetwork::Ipv4Network;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use trellis_gossip::{Effect, Gossip, MAX_PACKET_BYTES, View};

use crate::engine::gossip_seeds;
use crate::store::Store;

/// Packets read before the timer is looked at again.
const BURST: usize = 64;
/// How far the others were heard is written this often, and at a clean end: the file is not to be
/// synced for every packet, and what a death costs is little.
const HEARD_PERIOD: Duration = Duration::from_secs(10);

/// What the driver follows and tells.
pub struct Member {
    /// The machine.
    pub machine: Gossip,
    /// When its clock began.
    pub started: Instant,
    /// Bound to the advertise address.
    pub socket: UdpSocket,
    /// The node's pod CIDR.
    pub pod_cidr: watch::Receiver<Option<Ipv4Network>>,
    /// Where other machines may be found.
    pub nodes: watch::Receiver<Vec<IpAddr>>,
    /// API addresses of this machine.
    pub api_addresses: Vec<String>,
    /// Where views go.
    pub views: watch::Sender<Arc<View>>,
    /// Keeps the epoch over restarts, and how far the others were heard.
    pub store: Store,
    /// True: keep what is to be kept, and end.
    pub ending: watch::Receiver<bool>,
}

impl Member {
    /// Runs until it is told to end, or everybody who follows the views is gone.
    pub async fn run(mut self, seeds: Vec<SocketAddr>) -> io::Result<()> {
        let mut timer = Duration::ZERO;
        let mut epoch = 0;
        let mut saving = None;
        let mut heard_saved = Instant::now();
        let mut saving_heard = None;
        let effects = self.machine.announce(self.started.elapsed(), seeds);
        self.carry_out(effects, &mut timer).await;
        let mut buffer = vec![0; MAX_PACKET_BYTES + 1];
        while !self.views.is_closed() && !*self.ending.borrow() {
            let due = tokio::time::Instant::from_std(self.started + timer);
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(due) => {
                    // What has already arrived is heard before anybody is judged.
                    for _ in 0..BURST {
                        let Ok((length, from)) = self.socket.try_recv_from(&mut buffer) else { break };
                        self.packet(from, &buffer[..length], &mut timer).await;
                    }
                    let effects = self.machine.on_timer(self.started.elapsed());
                    self.carry_out(effects, &mut timer).await;
                }
                received = self.socket.recv_from(&mut buffer) => match received {
                    Ok((length, from)) => self.packet(from, &buffer[..length], &mut timer).await,
                    // An earlier packet's ICMP error: the peer is not there, which is no news.
                    Err(error) => tracing::trace!(%error, "gossip receive"),
                },
                Ok(()) = self.ending.changed() => {}
                Ok(()) = self.pod_cidr.changed() => self.say(&mut timer).await,
                Ok(()) = self.nodes.changed() => {
                    let seeds = gossip_seeds(&self.nodes.borrow_and_update());
                    let effects = self.machine.announce(self.started.elapsed(), seeds);
                    self.carry_out(effects, &mut timer).await;
                }
            }
            // One after the other: two that write the same file at once could tear it.
            if self.machine.epoch() > epoch && saving.as_ref().is_none_or(JoinHandle::is_finished) {
                epoch = self.machine.epoch();
                let store = self.store.clone();
                saving = Some(tokio::task::spawn_blocking(move || {
                    if let Err(error) = store.save_epoch(epoch) {
                        tracing::error!(%error, "cannot store the gossip epoch");
                    }
                }));
            }
            if heard_saved.elapsed() >= HEARD_PERIOD && saving_heard.as_ref().is_none_or(JoinHandle::is_finished) {
                heard_saved = Instant::now();
                saving_heard = Some(self.save_heard());
            }
        }
        // One after the other here as well; each tells of its error itself.
        for saving in [saving, saving_heard].into_iter().flatten() {
            let _ = saving.await;
        }
        let _ = self.save_heard().await;
        Ok(())
    }

    fn save_heard(&self) -> JoinHandle<()> {
        let (store, heard) = (self.store.clone(), self.machine.heard());
        tokio::task::spawn_blocking(move || {
            if let Err(error) = store.save_heard(heard) {
                tracing::error!(%error, "cannot store how far gossip heard the other nodes");
            }
        })
    }

    async fn packet(&mut self, from: SocketAddr, bytes: &[u8], timer: &mut Duration) {
        let effects = self.machine.on_packet(self.started.elapsed(), from, bytes);
        self.carry_out(effects, timer).await;
    }

    async fn say(&mut self, timer: &mut Duration) {
        let cidr = *self.pod_cidr.borrow_and_update();
        let api_addresses = self.api_addresses.clone();
        match self.machine.update_identity(self.started.elapsed(), cidr, api_addresses) {
            Ok(effects) => self.carry_out(effects, timer).await,
            Err(error) => tracing::error!(%error, "cannot gossip the pod CIDR"),
        }
    }

    async fn carry_out(&mut self, effects: Vec<Effect>, timer: &mut Duration) {
        for effect in effects {
            match effect {
                // A packet that cannot be sent is a lost packet: the protocol's daily bread.
                Effect::Send { to, packet } => {
                    if let Err(error) = self.socket.send_to(&packet, to).await {
                        tracing::trace!(%to, %error, "gossip send");
                    }
                }
                Effect::ViewChanged => self.publish(),
                Effect::SetTimer(at) => *timer = at,
            }
        }
    }

    fn publish(&mut self) {
        let view = self.machine.view();
        let before = self.views.send_replace(Arc::clone(&view));
        if before.healthy != view.healthy {
            let counters = self.machine.counters();
            tracing::warn!(healthy = view.healthy, doubts = counters.doubts, "gossip: opinion of myself changed");
        }
        for member in &view.members {
            let name = &member.identity.name;
            let known = before.member(name).map(|old| old.liveness);
            if known != Some(member.liveness) {
                tracing::info!(node = name, liveness = ?member.liveness, "gossip");
            }
        }
    }
}
