//! A closed loop of clients: each sends its next request when it has the answer to the last.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt, stream};

use super::report::percentile;
use crate::{Error, Result};

/// What a run gave.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Answers a second.
    pub per_second: f64,
    /// Median latency.
    pub p50_millis: f64,
    /// The latency that one in a hundred exceeds.
    pub p99_millis: f64,
}

/// What the clients run on. One thread: they do little, beside what is measured on the same cores.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().map_err(Error::io("start a runtime"))
}

/// Runs `clients` loops for `length`. `call(client, n)` is the client's n-th request; its first
/// error ends the run and is reported.
pub async fn run<F, Fut>(clients: usize, length: Duration, call: F) -> Result<Load>
where
    F: Fn(usize, u64) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = std::result::Result<(), String>> + Send,
{
    let (call, stop) = (Arc::new(call), Arc::new(AtomicBool::new(false)));
    let begin = Instant::now();
    let loops: Vec<_> = (0..clients)
        .map(|client| {
            let (call, stop) = (Arc::clone(&call), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut millis = Vec::new();
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) && begin.elapsed() < length {
                    let sent = Instant::now();
                    if let Err(error) = call(client, n).await {
                        stop.store(true, Ordering::Relaxed);
                        return Err(error);
                    }
                    millis.push(sent.elapsed().as_secs_f64() * 1e3);
                    n += 1;
                }
                Ok(millis)
            })
        })
        .collect();
    let mut all = Vec::new();
    for each in loops {
        let ended = each.await.map_err(|e| e.to_string()).and_then(|r| r);
        all.extend(ended.map_err(|why| Error::Format { what: "a request of the load".to_owned(), why })?);
    }
    let seconds = begin.elapsed().as_secs_f64();
    #[allow(clippy::cast_precision_loss)]
    let per_second = all.len() as f64 / seconds;
    Ok(Load { per_second, p50_millis: percentile(&all, 0.5), p99_millis: percentile(&all, 0.99) })
}

/// Runs `call` for each item, `at_once` of them at a time; the first error ends it.
pub async fn each<T, F, Fut>(items: impl IntoIterator<Item = T>, at_once: usize, call: F) -> Result<()>
where
    F: Fn(T) -> Fut,
    Fut: Future<Output = std::result::Result<(), String>>,
{
    let calls = stream::iter(items).map(call).buffer_unordered(at_once);
    let done = calls.try_for_each(|()| std::future::ready(Ok(()))).await;
    done.map_err(|why| Error::Format { what: "a request of many".to_owned(), why })
}
