//! The smallest HTTP client that asks a Pod a question: one GET, one answer, a deadline.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde::Serialize;

use crate::{Error, Result};

/// Answers of the lab's workloads are small; more is not read.
const BODY_LIMIT_BYTES: u64 = 1 << 20;

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// The body, as text.
    pub body: String,
}

/// GETs `http://address/path` from the network namespace that the calling thread is in.
pub fn get(address: SocketAddr, path: &str, limit: Duration) -> Result<Response> {
    let what = format!("GET http://{address}{path}");
    let io = || Error::io(what.clone());
    let mut stream = TcpStream::connect_timeout(&address, limit).map_err(io())?;
    stream.set_read_timeout(Some(limit)).map_err(io())?;
    stream.set_write_timeout(Some(limit)).map_err(io())?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n").map_err(io())?;
    let mut bytes = Vec::new();
    stream.take(BODY_LIMIT_BYTES).read_to_end(&mut bytes).map_err(io())?;
    parse(&String::from_utf8_lossy(&bytes)).ok_or_else(|| Error::Format { what, why: "no HTTP answer".to_owned() })
}

/// What came back, taken apart.
pub(crate) fn parse(text: &str) -> Option<Response> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/")?.split(' ').nth(1)?.parse().ok()?;
    Some(Response { status, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn answers_are_taken_apart() {
        let answer = parse("HTTP/1.0 404 Not Found\r\nA: b\r\n\r\nhello").unwrap();
        assert_eq!(answer, Response { status: 404, body: "hello".to_owned() });
        assert_eq!(parse("SSH-2.0-x\r\n"), None);
    }
}
