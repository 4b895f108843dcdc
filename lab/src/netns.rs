//! Doing something inside another network namespace: on a thread of its own that then ends.

use std::{fs::File, panic, thread};

use nix::sched::{CloneFlags, setns};

use crate::{Error, Result};

/// Runs `work` on a thread inside the network namespace of process `pid`.
pub fn inside<T: Send + 'static>(pid: i32, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let path = format!("/proc/{pid}/ns/net");
    let namespace = File::open(&path).map_err(Error::io(path.clone()))?;
    let entered = thread::Builder::new().name("in-netns".to_owned()).spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).map_err(Error::errno(format!("enter {path}")))?;
        work()
    });
    match entered.map_err(Error::io("start a thread"))?.join() {
        Ok(result) => result,
        Err(panicked) => panic::resume_unwind(panicked),
    }
}

/// Runs an async `work` with a runtime of its own inside the network namespace of process `pid`.
pub fn inside_async<T, F>(pid: i32, work: impl FnOnce() -> F + Send + 'static) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>>,
{
    inside(pid, move || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::io("start a runtime"))?;
        runtime.block_on(work())
    })
}
