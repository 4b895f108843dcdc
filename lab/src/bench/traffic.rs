//! A sender and a receiver over TCP: how much passes, and how long a round trip takes.
//!
//! The same code on every path: the sockets are made by threads inside the two network
//! namespaces, and used from here.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use super::report::percentile;
use crate::{Error, Result, netns};

/// A write, and the most that a read takes.
const CHUNK_BYTES: usize = 128 << 10;
/// A path that carries nothing is an error, not a wait.
const SILENCE: Duration = Duration::from_secs(5);

/// Where the traffic goes: two namespaces, each by a process or thread in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    /// Who sends.
    pub(super) client: i32,
    /// Who receives.
    pub(super) server: i32,
    /// The receiver's address.
    pub(super) address: Ipv4Addr,
}

impl Ends {
    /// `count` connections: the client's ends and the server's.
    fn connect(self, count: usize) -> Result<Vec<(TcpStream, TcpStream)>> {
        let what = format!("traffic to {}", self.address);
        let io = |what: &str| Error::io(what.to_owned());
        let any = SocketAddr::new(self.address.into(), 0);
        let shown = what.clone();
        let listener = netns::inside(self.server, move || {
            TcpListener::bind(any).map_err(Error::io(format!("listen for {shown}")))
        })?;
        let address = listener.local_addr().map_err(io(&what))?;
        let mut pairs = Vec::with_capacity(count);
        for _ in 0..count {
            let shown = what.clone();
            let client = netns::inside(self.client, move || {
                TcpStream::connect_timeout(&address, SILENCE).map_err(Error::io(format!("connect for {shown}")))
            })?;
            let (server, _) = listener.accept().map_err(io(&what))?;
            for stream in [&client, &server] {
                stream.set_nodelay(true).map_err(io(&what))?;
                stream.set_read_timeout(Some(SILENCE)).map_err(io(&what))?;
                stream.set_write_timeout(Some(SILENCE)).map_err(io(&what))?;
            }
            pairs.push((client, server));
        }
        Ok(pairs)
    }

    /// Gbit/s received over `streams` connections that send for `length`.
    pub(super) fn throughput(self, streams: usize, length: Duration) -> Result<f64> {
        let pairs = self.connect(streams)?;
        let begin = Instant::now();
        let io = || Error::io(format!("traffic to {}", self.address));
        let workers: Vec<_> = pairs
            .into_iter()
            .flat_map(|(client, server)| {
                let sender = thread::spawn(move || send(client, begin, length).map(|()| 0));
                [sender, thread::spawn(move || receive(server))]
            })
            .collect();
        let mut bytes = 0;
        for worker in workers {
            bytes += worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map_err(io())?;
        }
        let seconds = begin.elapsed().as_secs_f64();
        #[allow(clippy::cast_precision_loss)]
        Ok(bytes as f64 * 8.0 / 1e9 / seconds)
    }

    /// The median round trip of one byte in microseconds, over `length`.
    pub(super) fn round_trip(self, length: Duration) -> Result<f64> {
        let mut pairs = self.connect(1)?;
        let io = || Error::io(format!("round trips to {}", self.address));
        let Some((mut client, mut server)) = pairs.pop() else { return Ok(0.0) };
        let echo = thread::spawn(move || {
            let mut byte = [0];
            // Ends when the client closes.
            while server.read_exact(&mut byte).is_ok() && server.write_all(&byte).is_ok() {}
        });
        let begin = Instant::now();
        let mut micros = Vec::new();
        let mut byte = [0];
        while begin.elapsed() < length {
            let sent = Instant::now();
            client.write_all(&byte).map_err(io())?;
            client.read_exact(&mut byte).map_err(io())?;
            micros.push(sent.elapsed().as_secs_f64() * 1e6);
        }
        drop(client);
        // The loop above has no panic; its end is what was waited for.
        drop(echo.join());
        Ok(percentile(&micros, 0.5))
    }
}

fn send(mut stream: TcpStream, begin: Instant, length: Duration) -> std::io::Result<()> {
    let chunk = vec![0x5a; CHUNK_BYTES];
    while begin.elapsed() < length {
        stream.write_all(&chunk)?;
    }
    stream.shutdown(std::net::Shutdown::Write)
}

fn receive(mut stream: TcpStream) -> std::io::Result<u64> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut total = 0;
    loop {
        match stream.read(&mut chunk)? {
            0 => return Ok(total),
            length => total += length as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn traffic_passes_and_is_counted() {
        // The thread itself names the namespace it is in.
        let own = nix::unistd::gettid().as_raw();
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: traffic_passes_and_is_counted: entering a network namespace needs root");
            return;
        }
        // Nothing of a test runs in the machine's own namespace.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        netns::inside_async(own, || async {
            let net = crate::netlink::connect()?;
            crate::netlink::up_by_name(&net, "lo").await
        })
        .unwrap();
        let ends = Ends { client: own, server: own, address: Ipv4Addr::LOCALHOST };
        for streams in [1, 3] {
            assert!(ends.throughput(streams, Duration::from_millis(50)).unwrap() > 0.01);
        }
        let micros = ends.round_trip(Duration::from_millis(50)).unwrap();
        assert!(micros > 0.0 && micros < 1e5, "{micros}");
    }
}
