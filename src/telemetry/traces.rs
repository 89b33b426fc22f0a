//! Traces of builds for an OpenTelemetry collector: one span for a build, each stage, image and layer. They
//! are made from the events of the builder, so the builder does not know them.
//!
//! Traces are off unless the configuration or `OTEL_EXPORTER_OTLP_ENDPOINT` names a collector. A collector
//! that does not answer never delays a build: traces are then dropped.

mod build;
mod otlp;

use std::env;
use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use reqwest::redirect::Policy;
use reqwest::{Client, Url};
use tokio::sync::mpsc;

pub use build::BuildTrace;

use crate::config::telemetry::{Telemetry, traces_url};

/// The standard variable with the URL of a collector.
const VARIABLE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// Maximum number of traces that wait for the collector. Each has up to 4096 layers, which take about 2 MiB.
const QUEUE: usize = 8;
/// Maximum time for one export.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The exporter of traces. Clones share the same queue. The default exports nothing.
#[derive(Clone, Debug, Default)]
pub struct Traces(Option<mpsc::Sender<BuildTrace>>);

impl Traces {
    /// Starts the exporter if a collector is configured. Requires a tokio runtime.
    pub fn start(config: &Telemetry) -> Self {
        let given = match config.otlp_endpoint.as_str() {
            "" => env::var(VARIABLE).unwrap_or_default(),
            endpoint => endpoint.to_owned(),
        };
        if given.is_empty() {
            return Traces::default();
        }
        let exporter = traces_url(&given).and_then(|url| Ok((client().map_err(|e| e.to_string())?, url)));
        match exporter {
            Ok((client, url)) => {
                tracing::info!(%url, "exporting traces of builds");
                let (sender, receiver) = mpsc::channel(QUEUE);
                tokio::spawn(export(client, url, receiver));
                Traces(Some(sender))
            }
            Err(reason) => {
                tracing::warn!("traces are not exported: {VARIABLE}: {reason}");
                Traces::default()
            }
        }
    }

    /// Begins the trace of a build; `None` if traces are off. The attributes describe the build.
    pub fn begin(&self, attributes: impl IntoIterator<Item = (&'static str, String)>) -> Option<BuildTrace> {
        self.0.as_ref().map(|_| BuildTrace::new(attributes))
    }

    /// Exports the trace of a build that has ended.
    pub fn send(&self, trace: BuildTrace) {
        if self.0.as_ref().is_some_and(|queue| queue.try_send(trace).is_err()) {
            tracing::debug!("a trace was dropped, because the collector is too slow");
        }
    }
}

fn client() -> reqwest::Result<Client> {
    // Fails only if the process already has a provider, which works as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")))
        .redirect(Policy::none())
        .timeout(TIMEOUT)
        .build()
}

/// Sends traces until the queue is closed. Logs only the first of several failures in a row.
async fn export(client: Client, url: Url, mut queue: mpsc::Receiver<BuildTrace>) {
    let mut failing = false;
    while let Some(trace) = queue.recv().await {
        let request = client.post(url.clone()).header(CONTENT_TYPE, "application/json");
        let sent = request.body(otlp::request(&trace.finish())).send().await;
        match sent.and_then(reqwest::Response::error_for_status) {
            Ok(_) => failing = false,
            Err(error) if failing => tracing::debug!(%error, "cannot export a trace"),
            Err(error) => {
                tracing::warn!(%error, "cannot export a trace; the next failure is logged at the level debug");
                failing = true;
            }
        }
    }
}
