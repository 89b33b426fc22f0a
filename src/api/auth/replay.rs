//! Signatures that were used.
//!
//! An attacker who reads a signed request can send it again while its date is valid. A repeated request must not order an
//! image cache after the first one was deleted. So the daemon remembers the signatures of requests that begin something until
//! their dates expire. The memory of each tenant is bounded. At the bound the next signed request of the tenant is refused,
//! because a forgotten signature could be used again.
//!
//! The memory does not outlive the daemon. A request that was signed before the daemon started may have been used, and counts
//! as such; one whose date lies after the start because the clock of its client is fast does not. Several daemons of one
//! cluster do not know each other's signatures.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, SubsecRound as _, Utc};

use super::signature::SKEW;
use larder_model::image_cache::TenantName;

/// Maximum signatures that are remembered for one tenant: with dates of now, 18 requests a second. Each takes some 60 bytes.
const MOST: usize = 16_384;

/// What a signed request is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::api) struct Stamp {
    /// Its date, to the second.
    pub(in crate::api) date: DateTime<Utc>,
    /// Its signature.
    pub(in crate::api) signature: [u8; 32],
}

/// Signatures that were used, each until its date is too old.
#[derive(Debug)]
pub(in crate::api) struct Used {
    started: DateTime<Utc>,
    most: usize,
    of: Mutex<HashMap<TenantName, BTreeSet<Stamp>>>,
}

impl Used {
    /// None were used since `started`.
    pub(in crate::api) fn new(started: DateTime<Utc>) -> Self {
        // Dates have no fractions of a second.
        Used { started: started.trunc_subsecs(0), most: MOST, of: Mutex::default() }
    }

    /// Remembers a signature and returns whether it is used for the first time.
    ///
    /// # Errors
    /// The time until one is forgotten, if no more can be remembered for this tenant.
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
        // The oldest dates come first.
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
        let used = Used::new(at(0) + TimeDelta::milliseconds(400));
        let [a, b]: [TenantName; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        assert_eq!(used.first(&a, stamp(0, 1), at(0)), Ok(true), "signed in the second of the start");
        assert_eq!(used.first(&a, stamp(0, 1), at(0)), Ok(false));
        assert_eq!(used.first(&a, stamp(0, 2), at(0)), Ok(true));
        assert_eq!(used.first(&b, stamp(0, 1), at(0)), Ok(true), "of another tenant");
        assert_eq!(used.first(&a, stamp(-1, 3), at(0)), Ok(false), "signed before the start");
        // A fast clock: the date is in the future, and lives twice as long.
        assert_eq!(used.first(&a, stamp(900, 1), at(0)), Ok(true));
        assert_eq!(used.first(&a, stamp(0, 1), at(900)), Ok(false));
        assert_eq!(used.first(&a, stamp(900, 1), at(1800)), Ok(false));
        assert_eq!(used.of.lock().unwrap()[&a].len(), 1, "those that are too old are forgotten");
    }

    #[test]
    fn at_the_bound_nothing_is_forgotten() {
        let used = Used { most: 3, ..Used::new(at(0)) };
        let [a, b]: [TenantName; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        for n in 0..3 {
            assert_eq!(used.first(&a, stamp(i64::from(n) * 10, n), at(20)), Ok(true));
        }
        assert_eq!(used.first(&a, stamp(20, 9), at(20)), Err(Duration::from_secs(881)));
        assert_eq!(used.first(&b, stamp(20, 9), at(20)), Ok(true), "others are not concerned");
        for n in 0..3 {
            assert_eq!(used.first(&a, stamp(i64::from(n) * 10, n), at(20)), Ok(false));
        }
        assert_eq!(used.first(&a, stamp(901, 9), at(901)), Ok(true), "room again");
        assert!(used.first(&a, stamp(901, 10), at(901)).is_err());
    }
}
