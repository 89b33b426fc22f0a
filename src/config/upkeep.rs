//! `[upkeep]`: the maintenance that the daemon of a cluster does without a request.

use serde::{Deserialize, Serialize};

use super::Fault;

/// The `[upkeep]` section of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Upkeep {
    /// Maximum number of concurrent scheduled refreshes, including comparisons of image lists with their
    /// registries.
    pub max_refreshes: usize,
    /// `true` if image caches are created for images that pods in annotated namespaces need and that no image
    /// cache contains.
    pub create_on_miss: bool,
    /// Minimum number of pods of a namespace that need an image within
    /// [`miss_window_minutes`](Upkeep::miss_window_minutes).
    pub miss_pods: usize,
    /// Minutes for which a pod that needed an image is counted.
    pub miss_window_minutes: u32,
    /// Maximum number of image caches that are created on a miss per hour, over all namespaces.
    pub miss_caches_per_hour: usize,
    /// Minimum hours since the last use of an image cache before it can be deleted to make room.
    pub evict_after_hours: u32,
}

impl Default for Upkeep {
    fn default() -> Self {
        Upkeep {
            max_refreshes: 2,
            create_on_miss: false,
            miss_pods: 3,
            miss_window_minutes: 60,
            miss_caches_per_hour: 10,
            evict_after_hours: 24,
        }
    }
}

impl Upkeep {
    pub(super) fn check(&self, faults: &mut Vec<Fault>) {
        let mut fault = |key: &str, reason: String| {
            faults.push(Fault { key: format!("upkeep.{key}"), reason });
        };
        for (key, number, max) in [
            ("max_refreshes", self.max_refreshes, 100),
            ("miss_pods", self.miss_pods, 100),
            ("miss_caches_per_hour", self.miss_caches_per_hour, 1000),
        ] {
            if !(1..=max).contains(&number) {
                fault(key, format!("{number} is out of range, want 1 to {max}"));
            }
        }
        if !(1..=10_080).contains(&self.miss_window_minutes) {
            fault(
                "miss_window_minutes",
                format!("{} is out of range, want 1 to 10080", self.miss_window_minutes),
            );
        }
    }
}
