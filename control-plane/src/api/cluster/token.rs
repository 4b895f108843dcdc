//! Join tokens: `trellis.v1.<id>.<secret>.<sha256 of the CA certificate>`. The store keeps a
//! hash of the secret; a token is good once, until it expires.
//!
//! "Once" means for one set of keys: a machine whose answer was lost sends the same requests
//! again and is answered again; anybody else is refused.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use trellis_proto::pki;

use super::config::to_json;
use crate::api::names;
use crate::api::ops::{ApiError, Ops, now_millis};
use crate::store::{Command, Op, Outcome, SysWhen};

/// A token lives an hour unless told otherwise: it is for the machine at hand.
const DEFAULT_TTL: Duration = Duration::from_secs(3_600);
/// A token that lives longer than a week is a password that lies about.
const MAX_TTL: Duration = Duration::from_secs(7 * 86_400);
/// How long a machine whose answer was lost may ask again: a client retries for seconds.
const RETRY_MILLIS: u64 = 60_000;
/// Tokens outstanding at once.
const MAX_TOKENS: usize = 1_000;
/// Forgotten with each one that is made.
const SWEPT_AT_ONCE: usize = 100;
const PREFIX: &str = "trellis.v1.";

/// A token as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Format version.
    pub version: u32,
    /// SHA-256 of the secret, hex.
    pub secret_sha256: String,
    /// Unix milliseconds.
    pub expires_millis: u64,
    /// It admits control-plane members.
    pub control_plane: bool,
    /// Its one use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<Use>,
}

/// What a token was used for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Use {
    /// SHA-256 of node name and certificate requests.
    pub purpose: String,
    /// Unix milliseconds.
    pub at_millis: u64,
}

/// A token as a machine sends it.
#[derive(Debug, PartialEq, Eq)]
pub struct Presented<'a> {
    /// Finds the record.
    pub id: &'a str,
    /// Proves the right.
    pub secret: &'a str,
    /// Which CA it pins.
    pub ca_sha256: &'a str,
}

impl<'a> Presented<'a> {
    /// Takes the text apart.
    pub fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.trim().strip_prefix(PREFIX)?.split('.');
        let (id, secret, ca_sha256) = (parts.next()?, parts.next()?, parts.next()?);
        let fine = |s: &str| !s.is_empty() && s.len() <= 64 && s.bytes().all(|b| b.is_ascii_hexdigit());
        (parts.next().is_none() && fine(id) && fine(secret) && fine(ca_sha256)).then_some(Self {
            id,
            secret,
            ca_sha256,
        })
    }
}

/// Why a token is not good: what is logged, and what the holder is told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// No token, or one that was never made, or was swept.
    #[error(
        "the join token is not one of this cluster, or was used or expired some time ago: make a new one with \
         `trellis cluster token create`"
    )]
    Unknown,
    /// The id is right and the secret is not.
    #[error(
        "the join token is not one of this cluster, or was used or expired some time ago: make a new one with \
         `trellis cluster token create`"
    )]
    WrongSecret,
    /// It pins another CA.
    #[error("the join token is of another cluster: it pins another CA")]
    OtherCa,
    /// Too late.
    #[error("the join token has expired: make a new one with `trellis cluster token create`")]
    Expired,
    /// It was good once.
    #[error("the join token was used already: make a new one with `trellis cluster token create`")]
    Used,
    /// It does not admit members.
    #[error(
        "the join token does not admit control-plane members: make one with `trellis cluster \
         token create --control-plane`"
    )]
    NotForMembers,
}

/// Is the token good for this purpose? Pure.
///
/// # Errors
/// [`TokenError`].
pub fn check(
    record: Option<&TokenRecord>,
    presented: &Presented<'_>,
    own_ca_sha256: &str,
    purpose: &str,
    member: bool,
    now_millis: u64,
) -> Result<(), TokenError> {
    if presented.ca_sha256 != own_ca_sha256 {
        return Err(TokenError::OtherCa);
    }
    let record = record.ok_or(TokenError::Unknown)?;
    // Hashes are compared, so the time it takes tells nothing about the secret.
    if record.secret_sha256 != hash(presented.secret) {
        return Err(TokenError::WrongSecret);
    }
    if now_millis >= record.expires_millis {
        return Err(TokenError::Expired);
    }
    let again = |used: &Use| used.purpose == purpose && now_millis < used.at_millis.saturating_add(RETRY_MILLIS);
    if record.used.as_ref().is_some_and(|used| !again(used)) {
        return Err(TokenError::Used);
    }
    if member && !record.control_plane {
        return Err(TokenError::NotForMembers);
    }
    Ok(())
}

/// SHA-256, hex.
pub fn hash(text: &str) -> String {
    pki::hex(&Sha256::digest(text.as_bytes()))
}

/// Makes a token, and sweeps expired ones. Answers its text and when it expires.
///
/// # Errors
/// [`ApiError::BadRequest`] for a lifetime out of range, and those of proposing.
pub async fn create(ops: &Ops, ca_pem: &str, ttl_seconds: u64, control_plane: bool) -> Result<(String, u64), ApiError> {
    let ttl = if ttl_seconds == 0 { DEFAULT_TTL } else { Duration::from_secs(ttl_seconds) };
    if ttl > MAX_TTL {
        let message = format!("a token lives {} s at most, not {ttl_seconds}", MAX_TTL.as_secs());
        return Err(ApiError::BadRequest(message));
    }
    let pin = pki::fingerprint(ca_pem).map_err(|e| ApiError::Internal(e.to_string()))?;
    let id = pki::hex(&rand::random::<[u8; 8]>());
    let secret = pki::hex(&rand::random::<[u8; 32]>());
    let now = now_millis();
    let expires_millis = now + u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    let record = TokenRecord { version: 1, secret_sha256: hash(&secret), expires_millis, control_plane, used: None };
    let kept = ops.store().sys_list(names::TOKENS).into_iter();
    let kept = kept.map(|(key, found)| (key, serde_json::from_slice::<TokenRecord>(&found.value).ok()));
    let (outstanding, gone) = sweep(kept, now);
    let sweep = gone.into_iter().map(|key| Op::SysDelete { key, when: SysWhen::Always });
    if outstanding >= MAX_TOKENS {
        let message = format!("{MAX_TOKENS} join tokens are outstanding, which is the limit");
        return Err(ApiError::Precondition(message));
    }
    let put = Op::SysPut { key: names::token(&id), when: SysWhen::Absent, value: to_json(&record)? };
    let mut all: Vec<Op> = std::iter::once(put).chain(sweep).collect();
    loop {
        match ops.backend().propose(Command::new(now, all.clone())).await? {
            Outcome::Done { .. } => return Ok((format!("{PREFIX}{id}.{secret}.{pin}"), expires_millis / 1_000)),
            // Somebody who made one at the same time has swept the same.
            Outcome::Failed { .. } if all.len() > 1 => all.truncate(1),
            other => return Err(ApiError::Internal(format!("making a token: {other:?}"))),
        }
    }
}

/// How many tokens can still be redeemed, and the keys of those to forget: used ones after a retry
/// would come too late, expired ones after a day, which their holders are told of, or sooner when
/// there are as many of them. Pure.
fn sweep(tokens: impl Iterator<Item = (String, Option<TokenRecord>)>, now: u64) -> (usize, Vec<String>) {
    const KEPT_MILLIS: u64 = 86_400_000;
    let (mut outstanding, mut expired) = (0, 0);
    let mut gone = Vec::new();
    for (key, record) in tokens {
        let keep = record.is_some_and(|record| match &record.used {
            Some(used) => now < used.at_millis.saturating_add(RETRY_MILLIS),
            None if now < record.expires_millis => {
                outstanding += 1;
                true
            }
            None => {
                expired += 1;
                expired <= MAX_TOKENS && now < record.expires_millis.saturating_add(KEPT_MILLIS)
            }
        });
        if !keep {
            gone.push(key);
        }
    }
    gone.truncate(SWEPT_AT_ONCE);
    (outstanding, gone)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn a_token_is_good_once_in_time_for_its_cluster_and_purpose() {
        let text = "trellis.v1.ab12.cafe.f00d";
        let good = Presented::parse(text).unwrap();
        assert_eq!(good, Presented { id: "ab12", secret: "cafe", ca_sha256: "f00d" });
        let record = TokenRecord {
            version: 1,
            secret_sha256: hash("cafe"),
            expires_millis: 100,
            control_plane: false,
            used: None,
        };
        let used = Some(Use { purpose: "p".into(), at_millis: 10 });
        let used = TokenRecord { used, expires_millis: 1_000_000, ..record.clone() };
        let try_it =
            |record: Option<&TokenRecord>, ca, purpose, member, now| check(record, &good, ca, purpose, member, now);
        assert_eq!(try_it(Some(&record), "f00d", "p", false, 99), Ok(()));
        assert_eq!(try_it(Some(&used), "f00d", "p", false, 99), Ok(()));
        assert_eq!(try_it(Some(&used), "f00d", "q", false, 99), Err(TokenError::Used));
        let later = 10 + RETRY_MILLIS;
        assert_eq!(try_it(Some(&used), "f00d", "p", false, later), Err(TokenError::Used));
        assert_eq!(try_it(Some(&record), "f00d", "p", false, 100), Err(TokenError::Expired));
        assert_eq!(try_it(Some(&record), "beef", "p", false, 99), Err(TokenError::OtherCa));
        assert_eq!(try_it(Some(&record), "f00d", "p", true, 99), Err(TokenError::NotForMembers));
        assert_eq!(try_it(None, "f00d", "p", false, 99), Err(TokenError::Unknown));
        let wrong = Presented::parse("trellis.v1.ab12.beef.f00d").unwrap();
        let refused = check(Some(&record), &wrong, "f00d", "p", false, 99);
        assert_eq!(refused, Err(TokenError::WrongSecret));
    }

    #[test]
    fn only_what_can_be_redeemed_counts_and_the_rest_is_forgotten_in_time() {
        const DAY: u64 = 86_400_000;
        let record = |expires_millis, used_at: Option<u64>| TokenRecord {
            version: 1,
            secret_sha256: String::new(),
            expires_millis,
            control_plane: false,
            used: used_at.map(|at_millis| Use { purpose: String::new(), at_millis }),
        };
        let now = 10 * DAY;
        let kept = |record: Option<TokenRecord>| {
            let (outstanding, gone) = sweep([("t".to_owned(), record)].into_iter(), now);
            (outstanding, gone.is_empty())
        };
        assert_eq!(kept(Some(record(now + 1, None))), (1, true), "to be redeemed");
        assert_eq!(kept(Some(record(now + DAY, Some(now - 1)))), (0, true), "its answer may have been lost");
        assert_eq!(kept(Some(record(now + DAY, Some(now - RETRY_MILLIS)))), (0, false), "used");
        assert_eq!(kept(Some(record(now, None))), (0, true), "expired just now");
        assert_eq!(kept(Some(record(now - DAY, None))), (0, false), "expired long ago");
        assert_eq!(kept(None), (0, false), "broken");
        let many = |n: usize| (0..n).map(|i| (i.to_string(), Some(record(now, None))));
        assert_eq!(sweep(many(MAX_TOKENS + 5), now).1.len(), 5);
        assert_eq!(sweep(many(2 * MAX_TOKENS), now).1.len(), SWEPT_AT_ONCE);
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for text in [
            "",
            "trellis.v1.",
            "trellis.v1.a.b",
            "trellis.v2.a.b.c",
            "trellis.v1.a.b.c.d",
            "trellis.v1.a..c",
            "trellis.v1.x/y.b.c",
        ] {
            assert_eq!(Presented::parse(text), None, "{text}");
        }
    }
}
