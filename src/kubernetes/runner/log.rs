//! The log of a builder's pod: its events, and other lines for people in between.
//!
//! A log can be interrupted or lost. Only the progress of a running build depends on it. The result of a
//! build is in the termination message and in the conditions of its Job.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, LogParams};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::compat::FuturesAsyncReadCompatExt as _;

use super::objects::Role;
use crate::caches::pull_secrets::Unusable;
use crate::caches::runner::child::{event, next_line};
use larder_model::escape::escape_to;
use larder_model::event::{Event, Line, Outcome};

/// Maximum length of a line, bytes.
const MAX_LINE_BYTES: usize = 1 << 20;
/// Maximum length of a line that is not an event in Larder's own log, characters.
const MAX_LOGGED_CHARS: usize = 500;
/// Maximum time to wait for the rest of the logs after a Job has ended.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The logs of the pods of one Job.
pub(super) struct Logs {
    api: Api<Pod>,
    to: mpsc::Sender<Line>,
    unusable: Arc<Unusable>,
    /// Pods whose logs are read, and whether each has ended.
    pods: HashMap<String, Arc<Mutex<bool>>>,
    results: Arc<Mutex<HashMap<String, Outcome>>>,
    tasks: JoinSet<()>,
    pause: Duration,
}

impl Logs {
    pub(super) fn new(api: Api<Pod>, to: mpsc::Sender<Line>, unusable: Unusable, pause: Duration) -> Self {
        Logs {
            api,
            to,
            unusable: Arc::new(unusable),
            pods: HashMap::new(),
            results: Arc::default(),
            tasks: JoinSet::new(),
            pause,
        }
    }

    /// Starts to read the log of a pod whose builder has started. `ended` is `true` if it has also ended.
    pub(super) fn listen(&mut self, pod: &str, ended: bool) {
        let over = self.pods.entry(pod.to_owned()).or_insert_with(|| {
            let over = Arc::new(Mutex::new(false));
            let listener = LogReader {
                api: self.api.clone(),
                pod: pod.to_owned(),
                to: self.to.clone(),
                unusable: Arc::clone(&self.unusable),
                over: Arc::clone(&over),
                results: Arc::clone(&self.results),
                pause: self.pause,
            };
            self.tasks.spawn(listener.listen());
            over
        });
        *over.lock().unwrap_or_else(PoisonError::into_inner) |= ended;
    }

    /// Reads the rest of the logs, for a limited time.
    pub(super) async fn drain(&mut self) {
        let rest = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, rest).await;
    }

    /// Returns the result in the log of a pod.
    pub(super) fn result(&self, pod: &str) -> Option<Outcome> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner).get(pod).cloned()
    }
}

struct LogReader {
    api: Api<Pod>,
    pod: String,
    to: mpsc::Sender<Line>,
    unusable: Arc<Unusable>,
    over: Arc<Mutex<bool>>,
    results: Arc<Mutex<HashMap<String, Outcome>>>,
    pause: Duration,
}

impl LogReader {
    async fn listen(self) {
        let mut lines_read = 0;
        loop {
            // Read the flag first: a pod that ends after this point is read once more.
            let over = *self.over.lock().unwrap_or_else(PoisonError::into_inner);
            match self.read(&mut lines_read).await {
                Ok(true) => return,
                Ok(false) if over => return,
                Ok(false) => {}
                Err(why) => {
                    tracing::debug!(pod = self.pod, "reading its log failed: {why}");
                    if over {
                        return;
                    }
                }
            }
            tokio::time::sleep(self.pause).await;
        }
    }

    /// Reads the log from its start, and forwards the lines after the first `lines_read`. Returns whether it
    /// contained the result.
    async fn read(&self, lines_read: &mut u64) -> Result<bool, String> {
        let parameters = LogParams {
            container: Some(Role::Builder.container().to_owned()),
            follow: true,
            ..LogParams::default()
        };
        let log = self.api.log_stream(&self.pod, &parameters).await.map_err(|e| e.to_string())?;
        let mut log = tokio::io::BufReader::new(log.compat());
        let mut at = 0;
        while let Some(text) = next_line(&mut log, MAX_LINE_BYTES).await.map_err(|e| e.to_string())? {
            at += 1;
            if at <= *lines_read {
                continue;
            }
            *lines_read = at;
            // The log also contains standard error.
            let Ok(Some(mut line)) = event(&text) else {
                tracing::debug!(
                    pod = self.pod,
                    "builder: {}",
                    escape_to(&String::from_utf8_lossy(&text), MAX_LOGGED_CHARS)
                );
                continue;
            };
            let mut is_result = false;
            if let Event::Result(outcome) = &mut line.event {
                let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
                results.insert(self.pod.clone(), outcome.clone());
                self.unusable.name_in_outcome(outcome);
                is_result = true;
            }
            let _ = self.to.send(line).await;
            if is_result {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
