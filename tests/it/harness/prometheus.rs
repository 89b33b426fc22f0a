//! A real Prometheus that scrapes daemons and agents of a test.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::http::send;
use super::served::Running;

/// Maximum time until Prometheus has scraped its targets.
const LIMIT: Duration = Duration::from_secs(60);

/// A target of a scrape.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job<'a> {
    pub(crate) name: &'a str,
    pub(crate) address: SocketAddr,
    /// Bearer token, if the target needs one.
    pub(crate) token: Option<&'a str>,
}

/// A Prometheus process with the shipped alert rules. Killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Prometheus {
    _running: Running,
    address: SocketAddr,
    dir: TempDir,
}

impl Prometheus {
    /// Starts Prometheus with a scrape of each job every second.
    pub(crate) fn start(jobs: &[Job<'_>]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/monitoring/alerts.yaml");
        let mut config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{}']\nscrape_configs:\n",
            rules.display()
        );
        for job in jobs {
            writeln!(
                config,
                "- job_name: {}\n  static_configs: [{{targets: ['{}']}}]",
                job.name, job.address
            )
            .unwrap();
            if let Some(token) = job.token {
                writeln!(config, "  authorization: {{credentials: {token}}}").unwrap();
            }
        }
        fs::write(dir.path().join("prometheus.yml"), config).unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", dir.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        Prometheus { _running: Running::of(child.unwrap()), address, dir }
    }

    /// Waits until the query has a result, and returns the labels and the value of each series.
    pub(crate) fn query(&self, expression: &str) -> Vec<(Value, f64)> {
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let deadline = Instant::now() + LIMIT;
        loop {
            let result = self.get(&format!("/api/v1/query?query={encoded}"));
            let series = result.as_ref().and_then(|answer| answer["data"]["result"].as_array());
            if let Some(series) = series.filter(|series| !series.is_empty()) {
                let value = |series: &Value| series["value"][1].as_str().unwrap().parse().unwrap();
                return series.iter().map(|series| (series["metric"].clone(), value(series))).collect();
            }
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap();
            assert!(Instant::now() < deadline, "{expression}: {:?}\n{log}", self.get("/api/v1/targets"));
            sleep(Duration::from_millis(100));
        }
    }

    /// Returns the JSON at a path, or `None` while Prometheus does not answer.
    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        let answer = send(self.address, "GET", path, &[], &[]).ok()?;
        serde_json::from_slice(&answer.body).ok()
    }
}
