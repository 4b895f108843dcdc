//! Collects what foca asks for during one call.

use std::time::Duration;

use foca::{Message, Notification, Timer};

use crate::identity::NodeIdentity;

/// What one call into foca asked for.
#[derive(Default)]
pub(crate) struct Outbox {
    pub sends: Vec<(NodeIdentity, Vec<u8>)>,
    pub timers: Vec<(Duration, Timer<NodeIdentity>)>,
    pub pinged: Option<foca::ProbeNumber>,
    pub probe_failed: bool,
    pub connected: Option<bool>,
    pub changed: bool,
}

impl foca::Runtime<NodeIdentity> for Outbox {
    fn notify(&mut self, notification: Notification<'_, NodeIdentity>) {
        match notification {
            Notification::DataSent(header) => {
                if let Message::Ping(number) = header.message {
                    self.pinged = Some(number);
                }
            }
            Notification::ProbeFailed(..) => self.probe_failed = true,
            Notification::DataReceived(_) => {}
            Notification::Active => self.connected = Some(true),
            Notification::Idle | Notification::Defunct | Notification::Rejoin(_) => {
                self.connected = Some(false);
            }
            _ => self.changed = true,
        }
    }

    fn send_to(&mut self, to: NodeIdentity, data: &[u8]) {
        self.sends.push((to, data.to_vec()));
    }

    fn submit_after(&mut self, event: Timer<NodeIdentity>, after: Duration) {
        self.timers.push((after, event));
    }
}
