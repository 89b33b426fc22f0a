//! The log of a builder's pod: its events, and between them what it says for people.
//!
//! A log may break off and be lost. Nothing depends on it but what is told of a build under way: how a build ended is in the
//! termination message and in the conditions of its Job.

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

/// Longest line, bytes.
const LONGEST_LINE: usize = 1 << 20;
/// How much of a line that is no event goes to our log, characters.
const LOGGED: usize = 500;
/// How long the rest of the logs is waited for when a Job has ended.
const REST: Duration = Duration::from_secs(5);

/// The logs of the pods of one Job.
pub(super) struct Logs {
    api: Api<Pod>,
    to: mpsc::Sender<Line>,
    unusable: Arc<Unusable>,
    /// Pods that are listened to, and whether each has ended.
    pods: HashMap<String, Arc<Mutex<bool>>>,
    said: Arc<Mutex<HashMap<String, Outcome>>>,
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
            said: Arc::default(),
            tasks: JoinSet::new(),
            pause,
        }
    }

    /// Listens to a pod whose builder has begun; `ended` says whether it has ended, too.
    pub(super) fn listen(&mut self, pod: &str, ended: bool) {
        let over = self.pods.entry(pod.to_owned()).or_insert_with(|| {
            let over = Arc::new(Mutex::new(false));
            let listener = Listener {
                api: self.api.clone(),
                pod: pod.to_owned(),
                to: self.to.clone(),
                unusable: Arc::clone(&self.unusable),
                over: Arc::clone(&over),
                said: Arc::clone(&self.said),
                pause: self.pause,
            };
            self.tasks.spawn(listener.listen());
            over
        });
        *over.lock().unwrap_or_else(PoisonError::into_inner) |= ended;
    }

    /// Hears out all that have ended, for a bounded time.
    pub(super) async fn hear_out(&mut self) {
        let rest = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(REST, rest).await;
    }

    /// The result that a pod told.
    pub(super) fn said(&self, pod: &str) -> Option<Outcome> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).get(pod).cloned()
    }
}

struct Listener {
    api: Api<Pod>,
    pod: String,
    to: mpsc::Sender<Line>,
    unusable: Arc<Unusable>,
    over: Arc<Mutex<bool>>,
    said: Arc<Mutex<HashMap<String, Outcome>>>,
    pause: Duration,
}

impl Listener {
    async fn listen(self) {
        let mut heard = 0;
        loop {
            // Asked before reading: what ends afterwards is read once more.
            let over = *self.over.lock().unwrap_or_else(PoisonError::into_inner);
            match self.read(&mut heard).await {
                Ok(true) => return,
                Ok(false) if over => return,
                Ok(false) => {}
                Err(why) => {
                    tracing::debug!(pod = self.pod, "its log broke off: {why}");
                    if over {
                        return;
                    }
                }
            }
            tokio::time::sleep(self.pause).await;
        }
    }

    /// Reads the log from its start, passing on what comes after the first `heard` lines. Says whether it came to the result.
    async fn read(&self, heard: &mut u64) -> Result<bool, String> {
        let parameters = LogParams {
            container: Some(Role::Builder.container().to_owned()),
            follow: true,
            ..LogParams::default()
        };
        let log = self.api.log_stream(&self.pod, &parameters).await.map_err(|e| e.to_string())?;
        let mut log = tokio::io::BufReader::new(log.compat());
        let mut at = 0;
        while let Some(text) = next_line(&mut log, LONGEST_LINE).await.map_err(|e| e.to_string())? {
            at += 1;
            if at <= *heard {
                continue;
            }
            *heard = at;
            // Standard error is in the same log.
            let Ok(Some(mut line)) = event(&text) else {
                tracing::debug!(
                    pod = self.pod,
                    "builder: {}",
                    escape_to(&String::from_utf8_lossy(&text), LOGGED)
                );
                continue;
            };
            let mut is_result = false;
            if let Event::Result(outcome) = &mut line.event {
                let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
                said.insert(self.pod.clone(), outcome.clone());
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
