//! Network namespaces: holding, entering, and the loopback link.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::LinkNameSpaceType;

use crate::SandboxError;

/// This thread's network namespace.
///
/// # Errors
/// When /proc is not mounted.
pub fn current() -> Result<OwnedFd, SandboxError> {
    open(Path::new("/proc/thread-self/ns/net"))
}

/// A network namespace by path (`/proc/<pid>/ns/net`).
///
/// # Errors
/// What the kernel says.
pub fn open(path: &Path) -> Result<OwnedFd, SandboxError> {
    File::open(path).map(OwnedFd::from).map_err(|e| SandboxError::new("open namespace", path.display(), e))
}

/// Runs `work` inside a network namespace, on a thread of its own that then ends: no thread that
/// lives on is ever in a foreign namespace. Blocks until it is done.
///
/// # Errors
/// When the namespace cannot be entered (CAP_SYS_ADMIN) or the thread panicked.
pub fn inside<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> Result<T, SandboxError> {
    let error = |e: io::Error| SandboxError::new("enter the network namespace of descriptor", netns.as_raw_fd(), e);
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, || {
            rustix::thread::move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))
                .map_err(|e| error(e.into()))?;
            Ok(work())
        });
        match thread.map_err(error)?.join() {
            Ok(result) => result,
            Err(_) => Err(error(io::Error::other("the thread panicked"))),
        }
    })
}

/// An rtnetlink socket of this thread's network namespace; it stays there whoever holds it.
///
/// # Errors
/// What the kernel says.
pub fn rtnetlink_socket() -> Result<OwnedFd, SandboxError> {
    rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // NETLINK_ROUTE is protocol 0, which rustix writes as None.
        None,
    )
    .map_err(|e| SandboxError::new("open", "an rtnetlink socket", e))
}

/// Sets the loopback link of this thread's network namespace up (127.0.0.1 and ::1 come with it).
///
/// # Errors
/// Needs CAP_NET_ADMIN in the namespace.
pub fn loopback_up() -> Result<(), SandboxError> {
    let error = |e: io::Error| SandboxError::new("set up", "link lo", e);
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .map_err(|e| error(e.into()))?;
    // SAFETY: ifreq is plain data, valid when zeroed; the ioctls read and write only it, and it
    // lives across both calls. The name is "lo" with a terminating zero.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        let fd = socket.as_fd().as_raw_fd();
        if libc::ioctl(fd, libc::SIOCGIFFLAGS, &raw mut request) != 0 {
            return Err(error(io::Error::last_os_error()));
        }
        request.ifr_ifru.ifru_flags |= (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        if libc::ioctl(fd, libc::SIOCSIFFLAGS, &raw const request) != 0 {
            return Err(error(io::Error::last_os_error()));
        }
    }
    Ok(())
}
