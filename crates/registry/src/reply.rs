//! The response to a request: its head, and a bounded body.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use oci_distribution::errors::OciEnvelope;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_ENCODING, HeaderMap};
use tokio::time::Instant;

use super::address::Zone;
use super::error::{Fault, printable};
use super::host_limit::HostPermit;
use super::network_error::{network, no_data};
use super::rate::Rate;

/// Maximum size of an error body that is read, in bytes. A longer body costs the connection.
const MAX_ERROR_BODY: usize = 1 << 20;

/// The codings of IANA's "HTTP Content Coding Registry", except `identity`. Object stores send other values
/// with blobs (`aws-chunked`, `none`, `binary`). Those come from the upload and change no byte.
const CODINGS: [&str; 12] = [
    "aes128gcm",
    "br",
    "compress",
    "dcb",
    "dcz",
    "deflate",
    "exi",
    "gzip",
    "pack200-gzip",
    "x-compress",
    "x-gzip",
    "zstd",
];

/// Head of a response, with access to its body. Holds a permit of the host while it exists.
#[derive(Debug)]
pub(crate) struct Reply {
    response: reqwest::Response,
    read: Duration,
    rate: Option<Arc<Rate>>,
    /// Time spent waiting for the body.
    waited: Duration,
    /// Time since the last bytes of the body.
    silent: Duration,
    _permit: HostPermit,
}

/// The next part of a body.
#[derive(Debug)]
pub(crate) enum Arrival {
    Bytes(Bytes),
    End,
    /// No bytes within the given time.
    Nothing,
}

impl Reply {
    /// Wraps a response whose body must not pause for longer than `read`.
    pub(crate) fn new(
        response: reqwest::Response,
        permit: HostPermit,
        read: Duration,
        rate: Option<Arc<Rate>>,
    ) -> Self {
        Reply { response, read, rate, waited: Duration::ZERO, silent: Duration::ZERO, _permit: permit }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// Returns a header as text, if it is present and printable.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    /// Returns the zone of the remote address, which is the proxy's if there is one.
    pub(crate) fn zone(&self) -> Zone {
        self.response.remote_addr().map_or(Zone::Public, |address| Zone::of(address.ip()))
    }

    /// Returns the length that the server announced, in bytes.
    pub(crate) fn length(&self) -> Option<u64> {
        self.response.content_length()
    }

    /// Returns the value of Content-Encoding if it names a coding that changes the bytes of the body.
    pub(crate) fn encoding(&self) -> Option<String> {
        let value = String::from_utf8_lossy(self.headers().get(CONTENT_ENCODING)?.as_bytes()).into_owned();
        let mut codings = value.split(',').map(str::trim);
        let is_coded = codings.any(|coding| CODINGS.iter().any(|known| coding.eq_ignore_ascii_case(known)));
        is_coded.then(|| printable(&value))
    }

    /// Returns the next bytes of the body, or `None` at its end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, Fault> {
        loop {
            match self.chunk_within(Duration::MAX).await? {
                Arrival::Bytes(chunk) => return Ok(Some(chunk)),
                Arrival::End => return Ok(None),
                Arrival::Nothing => {}
            }
        }
    }

    /// Returns what arrives within `patience`.
    pub(crate) async fn chunk_within(&mut self, patience: Duration) -> Result<Arrival, Fault> {
        let limit = patience.min(self.read.saturating_sub(self.silent));
        let started = Instant::now();
        let chunk = tokio::time::timeout(limit, self.response.chunk()).await;
        let waited = started.elapsed();
        self.waited += waited;
        let Ok(chunk) = chunk else {
            self.silent += waited;
            return match self.silent < self.read {
                true => Ok(Arrival::Nothing),
                false => Err(Fault::transient(no_data(self.read))),
            };
        };
        self.silent = Duration::ZERO;
        let Some(chunk) = chunk.map_err(network)? else { return Ok(Arrival::End) };
        if let Some(rate) = &self.rate {
            rate.take(chunk.len()).await;
        }
        Ok(Arrival::Bytes(chunk))
    }

    /// Returns the time spent waiting for the body since the last call, and resets it.
    pub(crate) fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }

    /// Returns the whole body, which must not exceed `limit` bytes.
    pub(crate) async fn whole(&mut self, limit: usize) -> Result<Bytes, Fault> {
        let too_large = || Fault::Corrupt(format!("the response is larger than the limit of {limit} bytes"));
        if self.length().is_some_and(|length| length > limit as u64) {
            return Err(too_large());
        }
        let mut body = BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            if body.len() + chunk.len() > limit {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    /// Returns the status and the start of the body, for a message. Reading the body keeps the connection
    /// usable.
    pub(crate) async fn error_text(mut self) -> String {
        let status = self.status();
        let body = self.whole(MAX_ERROR_BODY).await.unwrap_or_default();
        let text = documented(&body).unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned());
        let text = printable(text.trim());
        // Many registries repeat the status as a code: UNAUTHORIZED.
        let repeats = status.canonical_reason().is_some_and(|reason| reason.eq_ignore_ascii_case(&text));
        if text.is_empty() || repeats { format!("{status}") } else { format!("{status}: {text}") }
    }
}

/// Returns the codes of an error document (OCI distribution spec, "Error codes").
fn documented(body: &[u8]) -> Option<String> {
    let document: OciEnvelope = serde_json::from_slice(body).ok()?;
    let errors = document.errors.iter().map(|error| {
        let code = serde_json::to_value(&error.code).ok();
        let code = code.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
        // The message repeats the code in words, except for a limit.
        match code.as_str() {
            "" => error.message.clone(),
            "TOOMANYREQUESTS" if !error.message.is_empty() => format!("{code}: {}", error.message),
            _ => code,
        }
    });
    let errors: Vec<String> = errors.collect();
    (!errors.is_empty()).then(|| errors.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_documents_are_reduced_to_codes() {
        let one =
            br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"Tag":"2"}}]}"#;
        assert_eq!(documented(one).as_deref(), Some("MANIFEST_UNKNOWN"));
        let two = br#"{"errors":[{"code":"DENIED"},{"code":"UNAUTHORIZED","message":"no"}]}"#;
        assert_eq!(documented(two).as_deref(), Some("DENIED; UNAUTHORIZED"));
        let limit = br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"100 pulls"}]}"#;
        assert_eq!(documented(limit).as_deref(), Some("TOOMANYREQUESTS: 100 pulls"));
        let own = br#"{"errors":[{"code":"OWN_CODE"}]}"#;
        assert_eq!(documented(own).as_deref(), Some("OWN_CODE"));
        for other in [&b"{\"errors\":[]}"[..], b"<html>"] {
            assert_eq!(documented(other), None);
        }
    }
}
