//! Detection of replayed signatures.
//!
//! An attacker who reads a signed request can send it again while its date is valid. A replayed request must
//! not order an image cache after the first one was deleted. So the daemon remembers the signatures of
//! requests that start something, until their dates expire. The number per tenant is bounded. At the bound
//! the next signed request of the tenant is refused, because a forgotten signature could be replayed.
//!
//! The signatures are lost when the daemon ends. A request that was signed before the daemon started might
//! have been used, so it counts as used. Exception: a client with a fast clock can sign a date after the
//! start, and such a request can be replayed once. Several daemons of one cluster do not share their
//! signatures.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, SubsecRound as _, Utc};

use super::signature::SKEW;
use larder_model::image_cache::TenantName;

/// Maximum number of signatures per tenant. With current dates this allows 18 requests per second. Each takes
/// about 60 bytes.
const MAX_SIGNATURES: usize = 16_384;

/// The identity of a signed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::api) struct Stamp {
    /// Date of the request, in seconds.
    pub(in crate::api) date: DateTime<Utc>,
    /// Signature of the request.
    pub(in crate::api) signature: [u8; 32],
}

/// The used signatures, each until its date expires.
#[derive(Debug)]
pub(in crate::api) struct UsedSignatures {
    started: DateTime<Utc>,
    most: usize,
    of: Mutex<HashMap<TenantName, BTreeSet<Stamp>>>,
}

impl UsedSignatures {
    /// Creates an empty set at the time `started`.
    pub(in crate::api) fn new(started: DateTime<Utc>) -> Self {
        // Dates have no fractions of a second.
        UsedSignatures { started: started.trunc_subsecs(0), most: MAX_SIGNATURES, of: Mutex::default() }
    }

    /// Records a signature and returns `true` if it was not used before.
    ///
    /// # Errors
    /// Returns the time until an entry expires, if the tenant has reached its maximum.
    pub(in crate::api) fn first(
        &self,
        tenant: &TenantName,
        stamp: Stamp,
        now: DateTime<Utc>,
    ) -> Result<bool, Duration> {
        if stamp.date < self.started {
            return Ok(false);
        }
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let used = of.entry(tenant.clone()).or_default();
        // The oldest dates are first.
        while used.first().is_some_and(|oldest| oldest.date + SKEW < now) {
            used.pop_first();
        }
        if used.contains(&stamp) {
            return Ok(false);
        }
        match used.first() {
            Some(oldest) if used.len() >= self.most => {
                Err((oldest.date + SKEW - now).to_std().unwrap_or_default() + Duration::from_secs(1))
            }
            _ => Ok(used.insert(stamp)),
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + seconds, 0).unwrap()
    }

    fn stamp(seconds: i64, signature: u8) -> Stamp {
        Stamp { date: at(seconds), signature: [signature; 32] }
    }

    #[test]
    fn a_signature_is_used_once_while_its_date_is_near() {
        let used = UsedSignatures::new(at(0) + TimeDelta::milliseconds(400));
        let [a, b]: [TenantName; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        assert_eq!(used.first(&a, stamp(0, 1), at(0)), Ok(true), "signed in the second of the start");
        assert_eq!(used.first(&a, stamp(0, 1), at(0)), Ok(false));
        assert_eq!(used.first(&a, stamp(0, 2), at(0)), Ok(true));
        assert_eq!(used.first(&b, stamp(0, 1), at(0)), Ok(true), "of another tenant");
        assert_eq!(used.first(&a, stamp(-1, 3), at(0)), Ok(false), "signed before the start");
        // A fast clock: the date is in the future, so it expires later.
        assert_eq!(used.first(&a, stamp(900, 1), at(0)), Ok(true));
        assert_eq!(used.first(&a, stamp(0, 1), at(900)), Ok(false));
        assert_eq!(used.first(&a, stamp(900, 1), at(1800)), Ok(false));
        assert_eq!(used.of.lock().unwrap()[&a].len(), 1, "expired entries are dropped");
    }

    #[test]
    fn no_signature_is_forgotten_at_the_bound() {
        let used = UsedSignatures { most: 3, ..UsedSignatures::new(at(0)) };
        let [a, b]: [TenantName; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        for n in 0..3 {
            assert_eq!(used.first(&a, stamp(i64::from(n) * 10, n), at(20)), Ok(true));
        }
        assert_eq!(used.first(&a, stamp(20, 9), at(20)), Err(Duration::from_secs(881)));
        assert_eq!(used.first(&b, stamp(20, 9), at(20)), Ok(true), "other tenants are not affected");
        for n in 0..3 {
            assert_eq!(used.first(&a, stamp(i64::from(n) * 10, n), at(20)), Ok(false));
        }
        assert_eq!(used.first(&a, stamp(901, 9), at(901)), Ok(true), "room again");
        assert!(used.first(&a, stamp(901, 10), at(901)).is_err());
    }
}
