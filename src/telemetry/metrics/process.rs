//! Metrics of this process, with the names that all Prometheus client libraries use
//! (<https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>).

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use procfs::process::{LimitValue, Process};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// Reads the metrics of this process from `/proc/self` at each scrape. Omits values that cannot be read.
#[derive(Debug)]
pub(super) struct ProcessCollector {
    /// Start of the process, seconds since the epoch.
    start: f64,
}

impl ProcessCollector {
    /// Creates a collector. The current time counts as the start of the process.
    pub(super) fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        ProcessCollector { start: now.as_secs_f64() }
    }
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut write = |name: &str, help: &str, unit: Option<&Unit>, value: &dyn EncodeMetric| {
            value.encode(encoder.encode_descriptor(name, help, unit, value.metric_type())?)
        };
        let seconds = Some(&Unit::Seconds);
        let bytes = Some(&Unit::Bytes);
        write(
            "process_start_time",
            "Start of the process since the epoch",
            seconds,
            &ConstGauge::new(self.start),
        )?;
        let Ok(process) = Process::myself() else { return Ok(()) };
        if let Ok(stat) = process.stat() {
            let ticks = procfs::ticks_per_second().max(1);
            let cpu = (stat.utime + stat.stime) as f64 / ticks as f64;
            write("process_cpu", "User and system time of the process", seconds, &ConstCounter::new(cpu))?;
            let resident = signed(stat.rss.saturating_mul(procfs::page_size()));
            write(
                "process_resident_memory",
                "Resident memory of the process",
                bytes,
                &ConstGauge::new(resident),
            )?;
            let size = ConstGauge::new(signed(stat.vsize));
            write("process_virtual_memory", "Virtual memory of the process", bytes, &size)?;
            write("process_threads", "Threads of the process", None, &ConstGauge::new(stat.num_threads))?;
        }
        if let Ok(open) = process.fd_count() {
            write("process_open_fds", "Open file descriptors", None, &ConstGauge::new(signed(open as u64)))?;
        }
        if let Ok(limits) = process.limits()
            && let LimitValue::Value(limit) = limits.max_open_files.soft_limit
        {
            let limit = ConstGauge::new(signed(limit));
            write("process_max_fds", "Maximum number of open file descriptors", None, &limit)?;
        }
        Ok(())
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
