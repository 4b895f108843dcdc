//! Tells the engine when somebody changes the kernel's state.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::mpsc;

use crate::engine::Event;
use crate::kernel::KernelError;
use crate::kernel::events::{Events, Source};

/// Changes come in bursts: one look a burst is enough.
const SETTLE: Duration = Duration::from_millis(100);

/// Watches the calling thread's network namespace on a thread of its own, which ends when nobody
/// else can send events any more.
pub fn watch(events: &mpsc::Sender<Event>) -> Result<(), KernelError> {
    let sources = [Events::open(Source::Route)?, Events::open(Source::Nftables)?];
    let events = events.downgrade();
    std::thread::Builder::new()
        .name("drift".into())
        .spawn(move || follow(sources, &events))
        .map_err(|source| KernelError::Refused { verb: "start", object: "the drift thread".into(), source })?;
    Ok(())
}

fn follow(mut sources: [Events; 2], events: &mpsc::WeakSender<Event>) {
    while events.strong_count() > 0 {
        let mut polled =
            [PollFd::new(sources[0].as_fd(), PollFlags::POLLIN), PollFd::new(sources[1].as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, PollTimeout::from(1000_u16)) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%error, "cannot wait for kernel events");
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        std::thread::sleep(SETTLE);
        for source in &mut sources {
            source.drain();
        }
        if events.upgrade().is_none_or(|events| events.blocking_send(Event::KernelChanged).is_err()) {
            return;
        }
    }
}
