//! The heartbeat: while it arrives, the control plane takes this node for alive.
use std::time::Duration;
use tokio::time::MissedTickBehavior;
use trellis_proto::{
    api::{RenewLeaseRequest, nodes_client::NodesClient},
    client::Connection,
    patience::stretched,
};

/// A third of the lease's life of 1.2 s: two beats may get lost.
const BEAT: Duration = Duration::from_millis(400);
/// A beat that takes longer than the lease lives is worthless; the next one tries another member.
const BEAT_TIMEOUT: Duration = Duration::from_millis(1000);

/// Beats for ever.
pub fn start(conn: Connection, node: String) {
    let instance = uuid::Uuid::new_v4().simple().to_string();
    tokio::spawn(async move {
        let mut interval = tokio::time::interval(stretched(BEAT));
        // After a pause of the whole process one beat is enough.
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            interval.tick().await;
            let request = RenewLeaseRequest { node: node.clone(), instance: instance.clone() };
            let call = conn.call_within(stretched(BEAT_TIMEOUT), |chan| {
                let request = request.clone();
                async move { NodesClient::new(chan).renew_lease(request).await }
            });
            match call.await {
                Ok(_) => {
                    if std::mem::take(&mut failing) {
                        tracing::info!("the control plane hears this node again");
                    }
                }
                Err(status) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(error = status.message(), "the control plane does not hear this node");
                    }
                }
            }
        }
    });
}
