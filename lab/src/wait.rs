//! Waiting: a predicate, a period and a limit; never a sleep followed by an assertion.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{Error, Result};

/// Between two looks.
pub const PERIOD: Duration = Duration::from_millis(25);

/// Looks until `look` answers `Ok`, or says what it last saw (`Err`) when `limit` is over.
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<T, String>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        match look() {
            Ok(value) => return Ok(value),
            Err(last) if Instant::now() >= end => {
                return Err(Error::Deadline { what: what.to_owned(), seconds: limit.as_secs(), last });
            }
            Err(_) => thread::sleep(PERIOD),
        }
    }
}

/// Looks until `look` is true.
pub fn until_true(what: &str, limit: Duration, mut look: impl FnMut() -> bool) -> Result<()> {
    until(what, limit, || if look() { Ok(()) } else { Err("not yet".to_owned()) })
}
