//! Attaching and detaching Pods, and the node's allocator.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::{ATTACH_PATIENCE, Attachment, Engine, EngineError, PendingAttach};
use crate::ipam::Ipam;
use crate::kernel::KernelError;
use crate::kernel::rtnl::Target;
use crate::links::{host_interface, is_host_interface};
use crate::store::Saving;

impl Engine {
    /// Does what is to do: allocations, kernel, answers.
    pub(super) fn work(&mut self) {
        self.ensure_ipam();
        self.rest_shown_addresses();
        self.settle_addresses();
        let (ready, saving) = self.admit();
        if !self.cluster.is_complete() {
            return self.answer(ready, Ok(()));
        }
        if !self.dirty && !self.look && ready.is_empty() && self.detached.is_empty() {
            return;
        }
        if !self.look && ready.is_empty() && self.detached.is_empty() && self.is_as_wanted() {
            self.dirty = false;
            self.note_applied();
            return;
        }
        let done = self.apply();
        if let Err(error) = &done {
            tracing::error!(%error, "not everything is in the kernel; trying again");
        }
        let stored = saving.map_or(Ok(()), |saving| super::finish(saving).map_err(Arc::new));
        match stored {
            Ok(()) => self.answer(ready, done.map_err(Arc::new)),
            Err(error) => {
                tracing::error!(%error, "cannot store the allocations");
                self.ipam_unsaved = true;
                for attach in ready {
                    let _ = attach.reply.send(Err(EngineError::Store(Arc::clone(&error))));
                }
                self.answer(Vec::new(), done.map_err(Arc::new));
            }
        }
    }

    /// Interfaces without an allocation: netd died after making them and before its file was
    /// written, so nobody was answered; or after a Pod was detached and before they were removed.
    pub(super) fn remove_half_made(&mut self) {
        let Some(ipam) = &self.ipam else { return };
        let known: BTreeSet<String> = ipam.in_use().map(|(uid, _)| host_interface(uid)).collect();
        let links = match self.rtnl.links() {
            Ok(links) => links,
            Err(error) => return tracing::error!(%error, "cannot look for half-made interfaces"),
        };
        for link in links.iter().filter(|link| is_host_interface(&link.name) && !known.contains(&link.name)) {
            tracing::info!(interface = link.name, "removing an interface that belongs to no allocation");
            if let Err(error) = self.rtnl.delete_link(&link.name) {
                tracing::error!(interface = link.name, %error, "cannot remove it");
            }
        }
    }

    /// The node's pod CIDR becomes known, or (with no Pod here) changes.
    fn ensure_ipam(&mut self) {
        let wanted = self.cluster.nodes.get(&self.config.node_name).and_then(|node| node.pod_cidrs.first());
        let Some(wanted) = wanted.copied() else { return };
        match &self.ipam {
            Some(ipam) if ipam.cidr() == wanted => {}
            Some(ipam) if ipam.in_use().next().is_some() => {
                tracing::error!(
                    known = %ipam.cidr(), new = %wanted,
                    "the node's pod CIDR changed while Pods have addresses of the old one; it takes effect when they are gone"
                );
            }
            _ => {
                let mut ipam = Ipam::new(wanted);
                let now = self.now();
                if let Err(error) = self.adopt_addresses(&mut ipam) {
                    tracing::error!(%error, "cannot look for Pods that have addresses already");
                    return;
                }
                for (uid, address) in self.cluster.shown_addresses() {
                    ipam.rest(uid, address, now);
                }
                if let Err(error) = self.store.save_ipam(&ipam) {
                    tracing::error!(%error, "cannot store the allocations");
                    return;
                }
                tracing::info!(cidr = %wanted, "the node has a pod CIDR");
                self.ipam = Some(ipam);
                self.ipam_anew = true;
                self.dirty = true;
                self.pod_cidr_out.send_replace(Some(wanted));
            }
        }
    }

    /// The state file is gone but Pods run: their interfaces and routes tell their addresses.
    fn adopt_addresses(&mut self, ipam: &mut Ipam) -> Result<(), KernelError> {
        let links = self.rtnl.links()?;
        let routes = self.rtnl.routes()?;
        for link in links.iter().filter(|link| is_host_interface(&link.name)) {
            let Some(uid) = &link.alias else { continue };
            let address = routes
                .iter()
                .find(|route| route.target == Target::Link(link.index) && route.destination.prefix() == 32);
            if let Some(route) = address
                && ipam.adopt(uid, route.destination.ip())
            {
                tracing::info!(pod = uid, address = %route.destination.ip(), "adopted a Pod's address");
            }
        }
        Ok(())
    }

    /// An allocator that was begun anew does not know what was freed before: what Pods are shown to
    /// have had, and no interface has, rests. Seen once more when all has been listed, for what is
    /// known at first is older, or nothing; no address is given before something is.
    fn rest_shown_addresses(&mut self) {
        let now = self.now();
        let listed = !self.is_cautious();
        let Some(ipam) = self.ipam.as_mut().filter(|_| self.ipam_anew && listed) else { return };
        self.ipam_anew = false;
        for (uid, address) in self.cluster.shown_addresses() {
            if ipam.rest(uid, address, now) {
                tracing::info!(pod = uid, %address, "an address of a Pod that is not here rests");
                self.ipam_unsaved = true;
            }
        }
    }

    /// Freed addresses whose Pods the API shows no more get the revision at which that was so.
    fn settle_addresses(&mut self) {
        if self.is_cautious() {
            // The file may be older than the Pod.
            return;
        }
        // Only when all have heard as much as this has the removal reached everybody.
        let (revision, cluster) = (self.cluster.revision(), &self.cluster);
        if let Some(ipam) = &mut self.ipam
            && ipam.note_gone(revision, |uid| cluster.shows_pod(uid))
        {
            // Lost, it is noted again, at a later revision: safe, so no Attach waits for it.
            self.ipam_unsaved = true;
        }
    }

    /// Gives addresses to waiting Pods; answers at once those that cannot have one. What is
    /// returned has its address on disk once the writing that is returned has ended.
    fn admit(&mut self) -> (Vec<PendingAttach>, Option<Saving>) {
        let now = self.now();
        let mut ready = Vec::new();
        let mut refused: Vec<(PendingAttach, EngineError)> = Vec::new();
        let mut waiting = Vec::new();
        let mut allocated = false;
        for attach in std::mem::take(&mut self.pending) {
            let uid = attach.uid.clone();
            let known = self.cluster.pods.contains_key(&uid) || self.cluster.local.contains_key(&uid);
            let impatient = attach.since.elapsed() >= ATTACH_PATIENCE;
            if !self.held.contains_key(&uid) {
                refused.push((attach, EngineError::NotHandedOver(uid)));
            } else if !known || !self.cluster.is_complete() {
                if impatient {
                    refused.push((attach, EngineError::UnknownPod(uid)));
                } else {
                    waiting.push(attach);
                }
            } else if let Some(ipam) = &mut self.ipam {
                let had = ipam.address_of(&uid).is_some();
                match ipam.allocate(&uid, now, self.min_applied) {
                    Ok(_) => {
                        allocated |= !had;
                        self.gone.remove(&host_interface(&uid));
                        self.inspect.insert(uid);
                        ready.push(attach);
                    }
                    Err(error) => refused.push((attach, error.into())),
                }
            } else if impatient {
                refused.push((attach, EngineError::NoPodCidr(uid)));
            } else {
                waiting.push(attach);
            }
        }
        self.pending = waiting;
        let mut saving = None;
        let unsaved = allocated || (self.ipam_unsaved && !ready.is_empty());
        if unsaved && let Some(ipam) = &self.ipam {
            match self.store.save_ipam_beside(ipam) {
                Ok(begun) => (saving, self.ipam_unsaved) = (Some(begun), false),
                Err(error) => {
                    self.ipam_unsaved = true;
                    let error = Arc::new(error);
                    let store = |attach| (attach, EngineError::Store(Arc::clone(&error)));
                    refused.extend(ready.drain(..).map(store));
                }
            }
        }
        self.dirty |= allocated;
        self.attached |= allocated;
        for (attach, error) in refused {
            let _ = attach.reply.send(Err(error));
        }
        (ready, saving)
    }

    pub(super) fn save_allocations(&self) -> Result<(), Arc<crate::store::StoreError>> {
        match &self.ipam {
            Some(ipam) => self.store.save_ipam(ipam).map_err(Arc::new),
            None => Ok(()),
        }
    }

    pub(super) fn on_detach(&mut self, uid: &str, reply: oneshot::Sender<Result<(), EngineError>>) {
        let now = self.now();
        self.held.remove(uid);
        self.inspect.remove(uid);
        self.cluster.local.remove(uid);
        let freed = self.ipam.as_mut().and_then(|ipam| ipam.release(uid, now));
        if let Some(address) = freed {
            self.gone.insert(host_interface(uid), address);
            self.dirty = true;
            self.unsaved = true;
            if let Err(error) = self.save_allocations() {
                let _ = reply.send(Err(EngineError::Store(error)));
                return;
            }
        }
        self.detached.push(reply);
    }

    fn answer(&mut self, ready: Vec<PendingAttach>, done: Result<(), Arc<KernelError>>) {
        for attach in ready {
            let done = match self.failed.get(&attach.uid) {
                Some(error) => Err(Arc::clone(error)),
                None => done.clone(),
            };
            let answer = match (&done, self.ipam.as_ref()) {
                (Ok(()), Some(ipam)) => match ipam.address_of(&attach.uid) {
                    Some(address) => {
                        Ok(Attachment { address, gateway: ipam.gateway(), mtu: self.mtu, revision: self.applied })
                    }
                    None => Err(EngineError::NotHandedOver(attach.uid.clone())),
                },
                (Ok(()), None) => Err(EngineError::NoPodCidr(attach.uid.clone())),
                (Err(error), _) => Err(EngineError::Kernel(attach.uid.clone(), Arc::clone(error))),
            };
            tracing::debug!(pod = attach.uid, micros = attach.since.elapsed().as_micros(), "attached");
            let _ = attach.reply.send(answer);
        }
        for reply in self.detached.drain(..) {
            let answer = done.clone().map_err(|error| EngineError::Kernel("being detached".into(), error));
            let _ = reply.send(answer);
        }
        if !self.pending.is_empty() {
            // A tick comes every second; patience is checked then.
            tracing::debug!(waiting = self.pending.len(), at = ?Instant::now(), "pods wait to be attached");
        }
    }
}
