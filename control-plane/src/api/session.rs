//! Who calls, and how much each caller may have under way at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tonic::{Request, Status};
use trellis_proto::identity::Identity;
use trellis_proto::server::peer;

use super::ops::ApiError;
use super::status::status;
use crate::auth::Caller;

/// Calls of one client at once, writes in streams among them: four times what a busy benchmark uses, and small enough that
/// a client gone wild cannot starve the others of memory.
const MAX_CALLS: usize = 1_024;
/// Watches of one client at once: an administrator's tools and dashboards share one identity.
const MAX_WATCHES: usize = 1_024;
/// Calls without a certificate at once (joins): each costs a signature or two.
const MAX_ANONYMOUS: usize = 16;

/// What of a client is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum What {
    Calls,
    Watches,
}

impl What {
    fn limit(self, caller: Option<&Caller>) -> usize {
        match (self, caller) {
            (_, None) => MAX_ANONYMOUS,
            (Self::Calls, _) => MAX_CALLS,
            (Self::Watches, _) => MAX_WATCHES,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Calls => "calls",
            Self::Watches => "watches",
        }
    }
}

type Counts = Mutex<HashMap<(Option<Caller>, What), usize>>;

/// Counts what each client has under way. Holds an entry for each client that has something.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    counts: Arc<Counts>,
}

/// A place under the limit, given back when dropped.
#[derive(Debug)]
pub struct Permit {
    counts: Arc<Counts>,
    key: (Option<Caller>, What),
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

impl Limits {
    fn take(&self, caller: Option<Caller>, what: What) -> Result<Permit, ApiError> {
        let limit = what.limit(caller.as_ref());
        let key = (caller, what);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key.clone()).or_insert(0);
        if *count >= limit {
            let who = key.0.map_or_else(|| "without a certificate,".into(), |c| c.to_string());
            return Err(ApiError::TooMany { who, what: what.name(), limit });
        }
        *count += 1;
        Ok(Permit { counts: Arc::clone(&self.counts), key })
    }

    /// The caller of a call that needs a certificate, and its place among its calls.
    ///
    /// # Errors
    /// UNAUTHENTICATED, RESOURCE_EXHAUSTED.
    pub fn call<T>(&self, request: &Request<T>) -> Result<(Caller, Permit), Status> {
        let caller = caller(request)?;
        let permit = self.take(Some(caller.clone()), What::Calls).map_err(status)?;
        Ok((caller, permit))
    }

    /// A place for one more call of a caller who is known.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED.
    pub fn another(&self, caller: &Caller) -> Result<Permit, Status> {
        self.take(Some(caller.clone()), What::Calls).map_err(status)
    }

    /// The same as [`Limits::call`] for a watch, or another stream that stays.
    ///
    /// # Errors
    /// UNAUTHENTICATED, RESOURCE_EXHAUSTED.
    pub fn watch<T>(&self, request: &Request<T>) -> Result<(Caller, Permit), Status> {
        let caller = caller(request)?;
        let permit = self.take(Some(caller.clone()), What::Watches).map_err(status)?;
        Ok((caller, permit))
    }

    /// A call that is for administrators and members alone.
    ///
    /// # Errors
    /// UNAUTHENTICATED, PERMISSION_DENIED, RESOURCE_EXHAUSTED.
    pub fn trusted<T>(&self, request: &Request<T>, what: &'static str) -> Result<(Caller, Permit), Status> {
        let (caller, permit) = self.call(request)?;
        if !caller.is_trusted() {
            return Err(forbidden(&caller, what));
        }
        Ok((caller, permit))
    }

    /// A place for a call without a certificate.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED.
    pub fn anonymous(&self) -> Result<Permit, Status> {
        self.take(None, What::Calls).map_err(status)
    }
}

/// Refuses, and logs it.
pub fn forbidden(caller: &Caller, what: &str) -> Status {
    tracing::warn!(%caller, what, "refused");
    let why = format!("{caller} may not do it");
    status(ApiError::Forbidden { what: what.to_owned(), why })
}

/// The holder of the connection's certificate.
///
/// # Errors
/// UNAUTHENTICATED when there is none.
pub fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    identity(request.extensions()).map(Caller::Peer)
}

/// For services that are not ours (health, reflection): anybody with a certificate.
///
/// # Errors
/// UNAUTHENTICATED when there is none.
pub fn require_identity(request: Request<()>) -> Result<Request<()>, Status> {
    caller(&request)?;
    Ok(request)
}

fn identity(extensions: &tonic::Extensions) -> Result<Identity, Status> {
    let info = extensions.get::<trellis_proto::server::PeerInfo>();
    match info.and_then(|i| i.identity.clone()) {
        Some(identity) => Ok(identity),
        None => {
            let address = info.map_or("unknown", |i| &i.address);
            tracing::warn!(address, "refused: a call without a client certificate");
            let message = "a client certificate of this cluster is required (only Cluster.Join \
                           goes without)";
            Err(status(ApiError::Unauthenticated(message.into())))
        }
    }
}

/// Where a request came from, for the log.
pub fn address_of<T>(request: &Request<T>) -> String {
    peer(request).map(|p| p.address.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn the_limit_is_per_client_and_is_given_back() {
        let limits = Limits::default();
        let one = Caller::Peer(Identity::Agent("n1".into()));
        let held: Vec<_> = (0..MAX_CALLS).map(|_| limits.take(Some(one.clone()), What::Calls).unwrap()).collect();
        let refused = limits.take(Some(one.clone()), What::Calls).unwrap_err().to_string();
        assert!(refused.contains("agent:n1 has 1024 calls at once"), "{refused}");
        limits.take(Some(one.clone()), What::Watches).unwrap();
        limits.take(Some(Caller::Peer(Identity::Agent("n2".into()))), What::Calls).unwrap();
        drop(held);
        limits.take(Some(one), What::Calls).unwrap();
        assert!(limits.counts.lock().unwrap().is_empty());
    }
}
