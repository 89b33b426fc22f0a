//! Other work on the machine during a measurement, which makes the figures worse.

use serde::{Deserialize, Serialize};

/// Load average per processor from which a machine counts as busy.
const BUSY_AVERAGE: f64 = 0.5;
/// Share of all processors from which the use by other processes is reported. The kernel's own work for the
/// measurement, such as writing back pages, also counts as such use.
const BUSY_OTHERS: f64 = 0.25;
/// Share of stolen time that is reported.
const BUSY_STEAL: f64 = 0.05;

/// Other work on the machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Number of processors of the machine.
    pub processors: usize,
    /// Load average of the minute before the start, per processor.
    pub average_at_start: f64,
    /// Share of the processor time of the machine that other processes used, 0 to 1.
    pub others: f64,
    /// Share of the processor time that the hypervisor gave to other machines, 0 to 1.
    pub steal: f64,
}

impl Load {
    /// Returns a warning if other work made the figures worse.
    pub fn warning(&self) -> Option<String> {
        let Load { processors, average_at_start, others, steal } = *self;
        let mut causes = Vec::new();
        if average_at_start >= BUSY_AVERAGE {
            causes.push(format!("the load average at the start was {average_at_start:.2} per processor"));
        }
        if others >= BUSY_OTHERS {
            let percent = others * 100.0;
            causes.push(format!("other processes used {percent:.0} % of {processors} processors"));
        }
        if steal >= BUSY_STEAL {
            let percent = steal * 100.0;
            causes.push(format!("the hypervisor took {percent:.0} % of the processor time"));
        }
        (!causes.is_empty()).then(|| {
            format!(
                "the machine was busy, so the figures are too high: {}; measure again later",
                causes.join(", ")
            )
        })
    }
}
