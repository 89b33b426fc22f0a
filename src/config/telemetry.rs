//! `[telemetry]`: the export of traces.

use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::Fault;

/// The `[telemetry]` section of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// URL of an OpenTelemetry collector that receives a trace of each build. Empty for the standard variable
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`. Without both, there are no traces.
    pub otlp_endpoint: String,
}

impl Telemetry {
    pub(super) fn check(&self, faults: &mut Vec<Fault>) {
        if !self.otlp_endpoint.is_empty()
            && let Err(reason) = traces_url(&self.otlp_endpoint)
        {
            faults.push(Fault { key: "telemetry.otlp_endpoint".to_owned(), reason });
        }
    }
}

/// Returns the URL that receives traces, for the base URL of a collector (OpenTelemetry specification, OTLP
/// exporter configuration).
///
/// # Errors
/// The text is not an HTTP URL, or contains credentials.
pub fn traces_url(base: &str) -> Result<Url, String> {
    let url = Url::parse(base).map_err(|e| format!("want an HTTP URL: {e}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("want the scheme http or https".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        return Err("a user name, a password and a query are not supported".to_owned());
    }
    let mut traces = url.clone();
    traces.set_path(&format!("{}/v1/traces", url.path().trim_end_matches('/')));
    Ok(traces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_traces_is_added() {
        for (base, want) in [
            ("http://localhost:4318", Some("http://localhost:4318/v1/traces")),
            ("https://c.example.com/otlp/", Some("https://c.example.com/otlp/v1/traces")),
            ("localhost:4318", None),
            ("https://user:secret@c.example.com", None),
            ("https://c.example.com/?token=secret", None),
        ] {
            let found = traces_url(base);
            assert_eq!(found.as_ref().map(Url::as_str).ok(), want, "{base}");
            assert!(!found.err().unwrap_or_default().contains("secret"), "{base}");
        }
    }
}
