//! `[upkeep]`: what the daemon of a cluster does with image caches without a request.

use serde::{Deserialize, Serialize};

use super::Fault;

/// The section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Upkeep {
    /// Maximum number of refreshes at once that schedules begin, and of images lists that are compared with their registries.
    pub max_refreshes: usize,
    /// Whether image caches are created for images that pods of annotated namespaces need and that no image cache contains.
    pub create_on_miss: bool,
    /// Number of pods of a namespace that must need an image within [`miss_window_minutes`](Upkeep::miss_window_minutes).
    pub miss_pods: usize,
    /// Minutes for which a pod that needed an image counts.
    pub miss_window_minutes: u32,
    /// Maximum number of image caches that are created on a miss per hour, in all namespaces together.
    pub miss_caches_per_hour: usize,
    /// Hours for which an image cache must not have been used before it may be deleted to make room.
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
