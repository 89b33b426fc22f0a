//! Wall time and processor time of one piece of work.

use std::time::{Duration, Instant};

use larder_model::bench_report::Elapsed;
use larder_sys::process;

/// A stopwatch that runs from its creation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stopwatch {
    started: Instant,
    processors: Duration,
}

impl Stopwatch {
    pub(super) fn start() -> Self {
        Stopwatch { started: Instant::now(), processors: process::processor_time() }
    }

    /// Returns the elapsed time. `other` is the processor time of concurrent work, which is subtracted.
    pub(super) fn took(self, other: Duration) -> Elapsed {
        let processors = process::processor_time().saturating_sub(self.processors);
        Elapsed {
            wall_seconds: self.started.elapsed().as_secs_f64(),
            processor_seconds: processors.saturating_sub(other).as_secs_f64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleeping_takes_no_processor() {
        let watch = Stopwatch::start();
        std::thread::sleep(Duration::from_millis(20));
        let took = watch.took(Duration::from_secs(3600));
        assert!(took.wall_seconds >= 0.02 && took.processor_seconds == 0.0, "{took:?}");
        let mut sum = 0_u64;
        while watch.took(Duration::ZERO).processor_seconds == 0.0 {
            sum = std::hint::black_box(sum + 1);
        }
    }
}
