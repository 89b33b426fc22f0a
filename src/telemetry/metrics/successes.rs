//! The time of the last successful build of each image cache.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// The name of an image cache. Its image references are no labels: they can be long and change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
struct Labels {
    tenant: String,
    name: String,
}

/// The times, in seconds since the epoch. Replaced as a whole, so a deleted cache has no sample. Clones share
/// the same state.
#[derive(Clone, Debug, Default)]
pub(super) struct Successes(Arc<Mutex<BTreeMap<Labels, i64>>>);

impl Successes {
    /// Replaces all times. Each has its tenant and the name of its cache.
    pub(super) fn replace<'a>(&self, times: impl Iterator<Item = (&'a str, &'a str, i64)>) {
        let new = times
            .map(|(tenant, name, time)| (Labels { tenant: tenant.to_owned(), name: name.to_owned() }, time));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = new.collect();
    }
}

impl Collector for Successes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut family = encoder.encode_descriptor(
            "cache_last_success_timestamp",
            "Time since the epoch at which the served volume of an image cache was sealed",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        for (labels, time) in &*times {
            ConstGauge::new(*time).encode(family.encode_family(labels)?)?;
        }
        Ok(())
    }
}
