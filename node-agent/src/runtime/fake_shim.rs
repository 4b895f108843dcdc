//! A shim for unit tests: it speaks the protocol, and makes nothing.
#![allow(clippy::unwrap_used, missing_docs)]
use std::{
    io::{Read, Write},
    os::unix::net::UnixListener,
    path::Path,
    sync::Arc,
};
use trellis_shim_protocol::{
    Reply, Request, SOCKET, VERSION,
    codec::{Decoder, encode},
};

/// Serves in the shim's folder `dir` as long as the test runs; each connection has a thread, so that
/// an answer may wait.
pub fn serve(dir: &Path, answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) {
    std::fs::create_dir_all(dir).unwrap();
    let listener = UnixListener::bind(dir.join(SOCKET)).unwrap();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, answer) = (stream.unwrap(), Arc::clone(&answer));
            std::thread::spawn(move || {
                let mut decoder = Decoder::<Request>::default();
                let mut buffer = [0; 4096];
                loop {
                    while let Some(request) = decoder.next_frame().unwrap() {
                        // Err: nobody waits for it any more.
                        drop(stream.write_all(&encode(&answer(&request)).unwrap()));
                    }
                    match stream.read(&mut buffer).unwrap_or(0) {
                        0 => return,
                        n => decoder.feed(&buffer[..n]),
                    }
                }
            });
        }
    });
}

pub fn hello() -> Reply {
    Reply::Hello { version: VERSION, shim: String::new(), pod_uid: String::new() }
}
