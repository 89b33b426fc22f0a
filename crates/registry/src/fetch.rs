//! A range of one blob, delivered in order even if connections fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::CONTENT_RANGE;
use reqwest::{StatusCode, Url};
use tokio::time::Instant;

use super::error::{Error, FailedMirror, Fault, clean_url};
use super::hosts::Endpoint;
use super::min_rate::RateMonitor;
use super::request::{self, GetRequest};
use super::retry::Attempts;
use super::transport::Reply;
use super::{Inner, Retry};

/// Maximum number of connections for one range. An honest network does not fail more often.
const MAX_CONNECTIONS: u32 = 10_000;

/// A blob and its sources.
#[derive(Debug)]
pub(crate) struct Blob {
    pub(crate) inner: Arc<Inner>,
    /// Operation, for messages: `reading blob sha256:… of r.io/team/app`.
    pub(crate) what: String,
    pub(crate) repository: String,
    /// Path in the repository: `blobs/<digest>`.
    pub(crate) path: String,
    pub(crate) size: u64,
    pub(crate) sources: Vec<Source>,
}

/// A location of a blob.
#[derive(Debug)]
pub(crate) enum Source {
    /// A mirror or the registry.
    Registry(Box<Endpoint>),
    /// A foreign location, used only if all sources before it returned 404.
    Foreign(Url),
}

impl Source {
    fn host(&self) -> String {
        match self {
            Source::Registry(endpoint) => endpoint.host(),
            Source::Foreign(url) => clean_url(url),
        }
    }

    fn is_mirror(&self) -> bool {
        matches!(self, Source::Registry(endpoint) if endpoint.namespace.is_some())
    }
}

/// The bytes from `at` to `end`, delivered in order and without a gap.
#[derive(Debug)]
pub(crate) struct Fetch {
    blob: Arc<Blob>,
    at: u64,
    end: u64,
    source: usize,
    reply: Option<Response>,
    /// Attempts since the last byte.
    attempt: u32,
    /// Start of the first of these attempts.
    since: Instant,
    connections: u32,
    monitor: RateMonitor,
    /// Mirrors that failed.
    tried: Vec<FailedMirror>,
    /// A range request failed at this source, so request the whole blob and skip the first bytes.
    whole: bool,
}

/// An open response, and the offset in the blob of its next byte.
#[derive(Debug)]
struct Response {
    reply: Reply,
    at: u64,
    /// Offset in the blob at which the body must end.
    until: u64,
    ranged: bool,
}

impl Fetch {
    pub(crate) fn new(blob: Arc<Blob>, at: u64, end: u64) -> Self {
        let options = &blob.inner.options;
        let monitor = RateMonitor::new(options.min_rate, options.ranges.parallel);
        Fetch {
            blob,
            at,
            end,
            source: 0,
            reply: None,
            attempt: 0,
            since: Instant::now(),
            connections: 0,
            monitor,
            tried: Vec::new(),
            whole: false,
        }
    }

    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Moves the end, for a server that sends the whole blob anyway.
    pub(crate) fn extend(&mut self, end: u64) {
        self.end = end;
    }

    /// Reports whether the current response honours ranges. `None` if there is no response.
    pub(crate) fn ranged(&self) -> Option<bool> {
        self.reply.as_ref().map(|response| response.ranged)
    }

    /// Connects, so that [`ranged`](Self::ranged) returns a value.
    pub(crate) async fn open(&mut self) -> Result<(), Error> {
        while self.reply.is_none() {
            match self.connect().await {
                Ok(response) => self.reply = Some(response),
                Err(fault) => self.recover(fault).await?,
            }
        }
        Ok(())
    }

    /// Returns the next bytes, or `None` at the end of the range.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while self.at < self.end {
            self.open().await?;
            match self.read().await {
                Ok(chunk) if chunk.is_empty() => {}
                Ok(chunk) => {
                    self.at += chunk.len() as u64;
                    self.attempt = 0;
                    self.since = Instant::now();
                    if self.at == self.end {
                        self.finish().await?;
                    }
                    return Ok(Some(chunk));
                }
                Err(fault) => self.recover(fault).await?,
            }
        }
        Ok(None)
    }

    async fn connect(&mut self) -> Result<Response, Fault> {
        let blob = &*self.blob;
        let (started, idle) = (Instant::now(), AtomicU64::new(0));
        self.connections += 1;
        let ranged = !self.whole && (self.at, self.end) != (0, blob.size);
        let request = GetRequest {
            repository: &blob.repository,
            path: &blob.path,
            accept: None,
            range: ranged.then_some((self.at, self.end - 1)),
            idle: Some(&idle),
        };
        let reply = match &blob.sources[self.source] {
            Source::Registry(endpoint) => request::get(&blob.inner, endpoint, request).await,
            Source::Foreign(url) => request::get_foreign(&blob.inner, url, request).await,
        };
        let idle = Duration::from_micros(idle.load(Ordering::Relaxed));
        self.monitor.count(started.elapsed().saturating_sub(idle), 0)?;
        let reply = reply?;
        if reply.status() == StatusCode::PARTIAL_CONTENT {
            let until = content_range(reply.header(CONTENT_RANGE.as_str()), request.range, blob.size)?;
            return Ok(Response { reply, at: self.at, until, ranged: true });
        }
        if let Some(length) = reply.length().filter(|length| *length != blob.size) {
            return Err(Fault::Corrupt(format!("it has {length} bytes, the descriptor gives {}", blob.size)));
        }
        Ok(Response { reply, at: 0, until: blob.size, ranged: false })
    }

    /// Returns the next bytes of the range. Empty if a whole chunk was skipped.
    async fn read(&mut self) -> Result<Bytes, Fault> {
        let Some(response) = &mut self.reply else {
            return Ok(Bytes::new());
        };
        let chunk = response.reply.chunk().await;
        let length = chunk.as_ref().map_or(0, |chunk| chunk.as_ref().map_or(0, Bytes::len));
        let mirror = usize::from(self.blob.sources[self.source].is_mirror());
        self.blob.inner.received[mirror].fetch_add(length as u64, Ordering::Relaxed);
        let paced = self.monitor.count(response.reply.take_waited(), length);
        let chunk = chunk?;
        // A layer that is complete is no longer too slow.
        if self.end - self.at > length as u64 {
            paced?;
        }
        let Some(mut chunk) = chunk else {
            return Err(Fault::transient(format!(
                "the body ended early, at byte {} of {}",
                response.at, self.blob.size
            )));
        };
        let start = response.at;
        response.at += chunk.len() as u64;
        if response.at > response.until {
            return Err(too_long(self.blob.size));
        }
        let skip = self.at.saturating_sub(start).min(chunk.len() as u64);
        let keep = (self.end - self.at).min(chunk.len() as u64 - skip);
        #[expect(clippy::cast_possible_truncation, reason = "both are at most the chunk's length")]
        let stretch = skip as usize..(skip + keep) as usize;
        chunk = chunk.slice(stretch);
        Ok(chunk)
    }

    /// Checks that the body ends where it must, if its end arrives soon.
    async fn finish(&mut self) -> Result<(), Error> {
        let Some(mut response) = self.reply.take().filter(|response| response.at == response.until) else {
            return Ok(());
        };
        let patience = Duration::from_secs(2);
        // All bytes are here, so a connection that fails now does no harm.
        match tokio::time::timeout(patience, response.reply.chunk()).await {
            Ok(Ok(Some(chunk))) if !chunk.is_empty() => Err(self.error(too_long(self.blob.size))),
            _ => Ok(()),
        }
    }

    /// Waits and prepares the next attempt, at this source or the next one. Returns the error if there is
    /// none.
    async fn recover(&mut self, mut fault: Fault) -> Result<(), Error> {
        self.reply = None;
        self.attempt += 1;
        let retries = &self.blob.inner.options.retries;
        if matches!(fault, Fault::Range(_)) {
            self.whole = true;
        }
        // A foreign location is used only if the blob is missing, and no retry changes that.
        let is_followed = matches!(self.blob.sources.get(self.source + 1), Some(Source::Registry(_)));
        let host = self.blob.sources[self.source].host();
        let unanswered = self.blob.inner.unanswered(&host, self.since);
        let wait = retries.again(&fault, Attempts { count: self.attempt, unanswered, is_followed });
        if let Some(wait) = wait.filter(|_| self.connections < MAX_CONNECTIONS) {
            self.blob.inner.observer.retried(&Retry {
                host: host.clone(),
                what: self.blob.what.clone(),
                reason: fault.reason(),
                wait,
            });
            tokio::time::sleep(wait).await;
            match self.monitor.count(wait, 0) {
                Ok(()) => return Ok(()),
                Err(slow) => fault = slow.into(),
            }
        }
        let absent = matches!(fault, Fault::NotFound(_));
        match self.blob.sources.get(self.source + 1) {
            Some(Source::Registry(_)) => {}
            Some(Source::Foreign(_))
                if absent || matches!(self.blob.sources[self.source], Source::Foreign(_)) => {}
            _ => return Err(self.error(fault)),
        }
        self.blob.inner.skip(host, fault, &mut self.tried);
        self.source += 1;
        self.monitor.reset();
        self.attempt = 0;
        self.since = Instant::now();
        self.whole = false;
        Ok(())
    }

    fn error(&self, fault: Fault) -> Error {
        Error::Request {
            what: self.blob.what.clone(),
            host: self.blob.sources[self.source].host(),
            fault,
            tried: self.tried.clone(),
        }
    }
}

fn too_long(size: u64) -> Fault {
    Fault::Corrupt(format!("it has more than the {size} bytes that the descriptor gives"))
}

/// Returns the end of the body of a 206 response, if its Content-Range (RFC 9110, 14.4) is the requested
/// range or the start of it.
fn content_range(given: Option<&str>, requested: Option<(u64, u64)>, size: u64) -> Result<u64, Fault> {
    let parsed = given.and_then(|given| {
        let (range, total) = given.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let total = if total == "*" { size } else { total.parse::<u64>().ok()? };
        Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?, total))
    });
    match (parsed, requested) {
        (Some((first, last, total)), Some((want, end)))
            if first == want && (first..=end).contains(&last) && total == size =>
        {
            Ok(last + 1)
        }
        _ => {
            let given = super::error::printable(given.unwrap_or("nothing"));
            let requested = requested
                .map_or("the whole blob".to_owned(), |(first, last)| format!("bytes {first}-{last}/{size}"));
            Err(Fault::Range(format!("a 206 response has Content-Range {given} instead of {requested}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        for (given, until) in [
            ("bytes 10-99/100", Some(100)),
            ("bytes 10-99/*", Some(100)),
            ("bytes 10-50/100", Some(51)),
            ("bytes 9-99/100", None),
            ("bytes 11-99/100", None),
            ("bytes 10-100/100", None),
            ("bytes 10-99/101", None),
            ("bytes 10-9/100", None),
            ("bytes */100", None),
            ("items 10-99/100", None),
            ("bytes 10-18446744073709551615/100", None),
        ] {
            assert_eq!(content_range(Some(given), Some((10, 99)), 100).ok(), until, "{given}");
        }
        assert!(content_range(None, Some((10, 99)), 100).is_err());
        assert!(content_range(Some("bytes 0-99/100"), None, 100).is_err());
    }
}
