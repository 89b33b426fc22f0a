//! Reads from `/proc` how busy the machine is with other work.

use std::time::Duration;

use procfs::{Current as _, CurrentSI as _, KernelStats, LoadAverage};

use larder_model::bench_report::Load;
use larder_sys::process;

/// The counters of the kernel at the start of a measurement.
#[derive(Debug)]
pub(super) struct LoadMeter {
    average: f64,
    counters: Counters,
}

/// Processor times since the boot, and that of this process.
#[derive(Clone, Copy, Debug)]
struct Counters {
    processors: usize,
    busy: Duration,
    idle: Duration,
    steal: Duration,
    own: Duration,
}

impl LoadMeter {
    /// Starts a measurement. `None` if `/proc` cannot be read.
    pub(super) fn start() -> Option<Self> {
        let average = f64::from(LoadAverage::current().ok()?.one);
        Some(LoadMeter { average, counters: Counters::read()? })
    }

    /// Returns the load since the start. `None` if `/proc` cannot be read.
    pub(super) fn end(self) -> Option<Load> {
        Some(load(self.average, &self.counters, &Counters::read()?))
    }
}

impl Counters {
    fn read() -> Option<Self> {
        let stat = KernelStats::current().ok()?;
        let total = stat.total;
        let busy = [
            total.user_duration(),
            total.nice_duration(),
            total.system_duration(),
            total.irq_duration().unwrap_or_default(),
            total.softirq_duration().unwrap_or_default(),
        ];
        Some(Counters {
            processors: stat.cpu_time.len().max(1),
            busy: busy.iter().sum(),
            idle: total.idle_duration() + total.iowait_duration().unwrap_or_default(),
            steal: total.steal_duration().unwrap_or_default(),
            own: process::processor_time(),
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "a number of processors")]
fn load(average: f64, before: &Counters, after: &Counters) -> Load {
    let since = |counter: fn(&Counters) -> Duration| counter(after).saturating_sub(counter(before));
    let (busy, steal) = (since(|counters| counters.busy), since(|counters| counters.steal));
    let all = (busy + steal + since(|counters| counters.idle)).as_secs_f64();
    let others = busy.saturating_sub(since(|counters| counters.own)).as_secs_f64();
    let share = |part: f64| if all > 0.0 { part / all } else { 0.0 };
    let processors = after.processors;
    Load {
        processors,
        average_at_start: average / processors as f64,
        others: share(others),
        steal: share(steal.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_of_this_process_is_not_that_of_others() {
        let seconds = Duration::from_secs;
        let counters = |busy, idle, steal, own| Counters {
            processors: 4,
            busy: seconds(busy),
            idle: seconds(idle),
            steal: seconds(steal),
            own: seconds(own),
        };
        let found = load(2.0, &counters(100, 1000, 0, 10), &counters(150, 1040, 10, 40));
        let want = Load { processors: 4, average_at_start: 0.5, others: 0.2, steal: 0.1 };
        assert_eq!(found, want);
        assert_eq!(load(0.0, &counters(1, 1, 1, 1), &counters(1, 1, 1, 1)).others, 0.0);
    }

    #[test]
    fn this_machine_has_a_load() {
        let load = LoadMeter::start().unwrap().end().unwrap();
        assert!(load.processors > 0 && load.average_at_start >= 0.0, "{load:?}");
        assert!((0.0..=1.0).contains(&load.others) && (0.0..=1.0).contains(&load.steal), "{load:?}");
    }
}
