//! What a service manager is told (`sd_notify(3)`): that a daemon is ready, that it ends, and,
//! where a watchdog is asked for, that its main loop still turns. One datagram, no library.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The daemon does its work from now on.
pub const READY: &str = "READY=1";
/// The daemon was told to end and does.
pub const STOPPING: &str = "STOPPING=1";
/// The daemon's main loop has turned. Send it from there, never from a timer of its own: a
/// watchdog that is fed beside a stuck loop watches nothing.
pub const ALIVE: &str = "WATCHDOG=1";

/// Sends `state` to `$NOTIFY_SOCKET`; does nothing when there is none.
pub fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let send = || -> io::Result<()> {
        let address = match path.as_bytes().split_first() {
            // An abstract socket's name begins with a zero byte, written as '@'.
            Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(&path)?,
        };
        UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(|_| ())
    };
    if let Err(error) = send() {
        tracing::warn!(%error, state, "the service manager was not told");
    }
}

/// How often [`ALIVE`] is to be sent: a third of what the service manager allows, so that one late
/// turn is no death. `None`: it does not watch this process.
#[must_use]
pub fn watchdog_period() -> Option<Duration> {
    let var = |name: &str| std::env::var(name).ok();
    period(var("WATCHDOG_USEC").as_deref(), var("WATCHDOG_PID").as_deref(), std::process::id())
}

fn period(micros: Option<&str>, pid: Option<&str>, own: u32) -> Option<Duration> {
    // The variables are inherited; they may be meant for a parent.
    if pid.is_some_and(|p| p.parse() != Ok(own)) {
        return None;
    }
    let micros: u64 = micros?.parse().ok().filter(|m| *m > 0)?;
    Some(Duration::from_micros(micros / 3))
}

/// Completes whenever [`ALIVE`] is due; never, where nobody watches. For a `select!` of the loop
/// that is watched.
#[derive(Debug)]
pub struct Watchdog(Option<tokio::time::Interval>);

impl Watchdog {
    /// As the environment says.
    #[must_use]
    pub fn from_env() -> Self {
        Self(watchdog_period().map(|period| {
            let mut interval = tokio::time::interval(period);
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            interval
        }))
    }

    /// Waits until the next sign of life is due. Cancel safe.
    pub async fn due(&mut self) {
        match &mut self.0 {
            Some(interval) => drop(interval.tick().await),
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_for_the_process_it_names() {
        assert_eq!(period(Some("30000000"), None, 7), Some(Duration::from_secs(10)));
        assert_eq!(period(Some("30000000"), Some("7"), 7), Some(Duration::from_secs(10)));
        assert_eq!(period(Some("30000000"), Some("8"), 7), None);
        assert_eq!(period(Some("0"), None, 7), None);
        assert_eq!(period(Some("soon"), None, 7), None);
        assert_eq!(period(None, None, 7), None);
    }
}
