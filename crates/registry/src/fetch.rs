//! A range of one blob, delivered in order even if connections fail or are slow.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::{ACCEPT_RANGES, CONTENT_RANGE};
use tokio::time::Instant;

use super::error::{Error, FailedMirror, Fault};
use super::extent::Extent;
use super::min_rate::RateMonitor;
use super::pace::{Comparison, Pace, Straggling};
use super::reply::{Arrival, Reply};
use super::request::{self, GetRequest};
use super::retry::Attempts;
use super::source::{Blob, Location, Source};
use super::{Replacement, Retry};

/// Maximum number of connections for one range. An honest network does not fail more often.
const MAX_CONNECTIONS: u32 = 10_000;

/// Maximum number of slow connections that are replaced for one range.
const MAX_REPLACEMENTS: u32 = 8;

/// The bytes of an extent, delivered in order and without a gap.
#[derive(Debug)]
pub(crate) struct Fetch {
    blob: Arc<Blob>,
    extent: Arc<Extent>,
    /// `true` for a part that arrives before its turn: its consumer does not delay it, and a source that does
    /// not honour ranges is an error.
    is_ahead: bool,
    /// Indices of the sources, and the position of the current one.
    order: Vec<usize>,
    position: usize,
    response: Option<Response>,
    /// Attempts since the last byte.
    attempt: u32,
    /// Start of the first of these attempts.
    since: Instant,
    connections: u32,
    monitor: RateMonitor,
    /// Sources that failed, by index.
    tried: Vec<(usize, FailedMirror)>,
    /// A range request failed at this source, so request the whole blob and skip the first bytes.
    whole: bool,
    replacements: u32,
    /// A slow connection to this source was replaced.
    was_slow: bool,
}

/// An open response, and the offset in the blob of its next byte.
#[derive(Debug)]
struct Response {
    reply: Reply,
    pace: Pace,
    at: u64,
    /// Offset in the blob at which the body must end.
    until: u64,
}

/// Result of reading from a connection.
enum Reading {
    Bytes(Bytes),
    Slow(Straggling),
}

impl Fetch {
    /// Creates part number `part` of a blob.
    pub(crate) fn new(blob: Arc<Blob>, extent: Arc<Extent>, part: usize) -> Self {
        let monitor = RateMonitor::new(blob.inner.options.min_rate, blob.received());
        Fetch {
            order: blob.order(part),
            blob,
            extent,
            is_ahead: false,
            position: 0,
            response: None,
            attempt: 0,
            since: Instant::now(),
            connections: 0,
            monitor,
            tried: Vec::new(),
            whole: false,
            replacements: 0,
            was_slow: false,
        }
    }

    /// Creates a part that arrives in memory before its turn. It fails with [`Fault::Range`] if a source does
    /// not honour ranges.
    pub(crate) fn ahead(blob: Arc<Blob>, extent: Arc<Extent>, part: usize) -> Self {
        Fetch { is_ahead: true, ..Fetch::new(blob, extent, part) }
    }

    /// Returns the next bytes, or `None` at the end of the range.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let (at, end) = self.extent.get();
            if at >= end {
                return Ok(None);
            }
            let fault = match self.step(at, end).await {
                Ok(Reading::Bytes(chunk)) if chunk.is_empty() => continue,
                Ok(Reading::Bytes(chunk)) => {
                    self.attempt = 0;
                    self.since = Instant::now();
                    self.finish().await?;
                    return Ok(Some(chunk));
                }
                Ok(Reading::Slow(slow)) => {
                    self.replace(slow);
                    continue;
                }
                Err(fault) => fault,
            };
            self.recover(fault).await?;
        }
    }

    /// Connects if necessary, and reads from the connection.
    async fn step(&mut self, at: u64, end: u64) -> Result<Reading, Fault> {
        // The response ends before the range: the range was extended, or the server sends less.
        let is_over = self.response.as_ref().is_some_and(|response| response.at == response.until);
        if is_over && self.connections < MAX_CONNECTIONS {
            self.response = None;
        }
        if self.response.is_none() {
            self.response = Some(self.connect(at, end).await?);
        }
        self.read(at, end).await
    }

    fn source(&self) -> &Source {
        &self.blob.sources[self.order[self.position]]
    }

    /// Returns the next source.
    fn following(&self) -> Option<&Source> {
        self.order.get(self.position + 1).map(|at| &self.blob.sources[*at])
    }

    async fn connect(&mut self, at: u64, end: u64) -> Result<Response, Fault> {
        let blob = Arc::clone(&self.blob);
        let (started, idle) = (Instant::now(), AtomicU64::new(0));
        self.connections += 1;
        let ranged = self.is_ahead || !self.whole && (at, end) != (0, blob.size);
        let request = GetRequest {
            repository: &blob.repository,
            path: &blob.path,
            accept: None,
            range: ranged.then_some((at, end - 1)),
            idle: Some(&idle),
        };
        let reply = match &self.source().location {
            Location::Registry(endpoint) => request::get(&blob.inner, endpoint, request).await,
            Location::Foreign(url) => request::get_foreign(&blob.inner, url, request).await,
        };
        let latency = started.elapsed().saturating_sub(Duration::from_micros(idle.load(Ordering::Relaxed)));
        self.monitor.count(latency, blob.received())?;
        let reply = reply?;
        let pace = Pace::new(latency, !self.is_ahead, Instant::now());
        if reply.status() == StatusCode::PARTIAL_CONTENT {
            let until = content_range(reply.header(CONTENT_RANGE.as_str()), request.range, blob.size)?;
            blob.ranged.store(true, Ordering::Relaxed);
            return Ok(Response { reply, pace, at, until });
        }
        if self.is_ahead {
            return Err(Fault::Range("a request for a range returned the whole blob".into()));
        }
        if let Some(length) = reply.length().filter(|length| *length != blob.size) {
            return Err(Fault::Corrupt(format!("it has {length} bytes, the descriptor gives {}", blob.size)));
        }
        if !ranged && reply.header(ACCEPT_RANGES.as_str()).is_some_and(|unit| unit.trim() == "bytes") {
            blob.ranged.store(true, Ordering::Relaxed);
        }
        Ok(Response { reply, pace, at: 0, until: blob.size })
    }

    /// Returns the next bytes of the range: none if all were skipped, or if none arrived for a while.
    async fn read(&mut self, at: u64, end: u64) -> Result<Reading, Fault> {
        let may_replace = !self.whole && self.replacements < MAX_REPLACEMENTS && self.blob.has_ranges();
        let source = &self.blob.sources[self.order[self.position]];
        let has_alternative = self.following().is_some_and(|source| !source.is_foreign());
        let Some(response) = &mut self.response else {
            return Ok(Reading::Bytes(Bytes::new()));
        };
        let patience = if may_replace { response.pace.rest(Instant::now()) } else { Duration::MAX };
        let arrival = response.reply.chunk_within(patience).await;
        let length = match &arrival {
            Ok(Arrival::Bytes(chunk)) => chunk.len(),
            _ => 0,
        };
        let inner = &self.blob.inner;
        inner.received[usize::from(source.is_mirror())].fetch_add(length as u64, Ordering::Relaxed);
        self.blob.arrived.fetch_add(length as u64, Ordering::Relaxed);
        let waited = response.reply.take_waited();
        let paced = self.monitor.count(waited, self.blob.received());
        let left = (end - at).saturating_sub(length as u64);
        let with = Comparison { peers: &source.peers, has_alternative };
        let pace = response.pace.count(Instant::now(), with, waited, length, left);
        let mut chunk = match arrival? {
            Arrival::Bytes(chunk) => chunk,
            Arrival::Nothing => Bytes::new(),
            Arrival::End => {
                return Err(Fault::transient(format!(
                    "the body ended early, at byte {} of {}",
                    response.at, self.blob.size
                )));
            }
        };
        // A layer that is complete is no longer too slow.
        if left > 0 {
            paced?;
        }
        let start = response.at;
        response.at += chunk.len() as u64;
        if response.at > response.until {
            return Err(too_long(self.blob.size));
        }
        let skip = at.saturating_sub(start).min(chunk.len() as u64);
        let keep = self.extent.take(chunk.len() as u64 - skip);
        #[expect(clippy::cast_possible_truncation, reason = "both are at most the chunk's length")]
        let stretch = skip as usize..(skip + keep) as usize;
        chunk = chunk.slice(stretch);
        match pace {
            Err(slow) if may_replace && chunk.is_empty() => Ok(Reading::Slow(slow)),
            Err(slow) if may_replace => {
                self.replace(slow);
                Ok(Reading::Bytes(chunk))
            }
            _ => Ok(Reading::Bytes(chunk)),
        }
    }

    /// At the end of the range, checks that the body ends where it must, if its end arrives soon.
    async fn finish(&mut self) -> Result<(), Error> {
        let (at, end) = self.extent.get();
        if at < end {
            return Ok(());
        }
        let Some(mut response) = self.response.take().filter(|response| response.at == response.until) else {
            return Ok(());
        };
        let patience = Duration::from_secs(2);
        // All bytes are here, so a connection that fails now does no harm.
        match tokio::time::timeout(patience, response.reply.chunk()).await {
            Ok(Ok(Some(chunk))) if !chunk.is_empty() => Err(self.error(too_long(self.blob.size))),
            _ => Ok(()),
        }
    }

    /// Closes a slow connection. The next one continues at the byte that was reached, at the next host if
    /// the source was slow before.
    fn replace(&mut self, slow: Straggling) {
        self.response = None;
        self.replacements += 1;
        let host = self.source().host();
        self.blob.inner.observer.replaced(&Replacement {
            host,
            what: self.blob.what.clone(),
            rate: to_integer(slow.rate),
            median: to_integer(slow.median),
        });
        let is_last = self.following().is_none_or(Source::is_foreign);
        if !std::mem::replace(&mut self.was_slow, true) || is_last {
            return;
        }
        self.source().avoid();
        // Slow is better than nothing: this source follows the others.
        let at = self.order[self.position];
        let end = self.order.iter().position(|at| self.blob.sources[*at].is_foreign());
        self.order.insert(end.unwrap_or(self.order.len()), at);
        self.move_on();
    }

    fn move_on(&mut self) {
        self.position += 1;
        self.monitor.reset(self.blob.received());
        self.attempt = 0;
        self.since = Instant::now();
        self.whole = false;
        self.was_slow = false;
    }

    /// Waits and prepares the next attempt, at this source or the next one. Returns the error if there is
    /// none.
    async fn recover(&mut self, mut fault: Fault) -> Result<(), Error> {
        self.response = None;
        self.attempt += 1;
        let retries = &self.blob.inner.options.retries;
        if matches!(fault, Fault::Range(_)) {
            self.blob.unranged.store(true, Ordering::Relaxed);
            if self.is_ahead {
                return Err(self.error(fault));
            }
            self.whole = true;
        }
        // A foreign location is used only if the blob is missing, and no retry changes that.
        let is_followed = self.following().is_some_and(|source| !source.is_foreign());
        let host = self.source().host();
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
            match self.monitor.count(wait, self.blob.received()) {
                Ok(()) => return Ok(()),
                Err(slow) => fault = slow.into(),
            }
        }
        let absent = matches!(fault, Fault::NotFound(_));
        match self.following() {
            Some(next) if !next.is_foreign() || absent || self.source().is_foreign() => {}
            _ => return Err(self.error(fault)),
        }
        self.source().avoid();
        self.blob.inner.report(&host, &fault);
        self.tried.push((self.order[self.position], FailedMirror { host, fault }));
        self.move_on();
        Ok(())
    }

    /// Returns the error of the source that comes last by configuration. The others are its mirrors.
    fn error(&self, fault: Fault) -> Error {
        let mut decisive = (self.order[self.position], FailedMirror { host: self.source().host(), fault });
        let mut others = self.tried.clone();
        for other in &mut others {
            if other.0 > decisive.0 {
                std::mem::swap(other, &mut decisive);
            }
        }
        others.sort_by_key(|(at, _)| *at);
        let tried = others.into_iter().map(|(_, mirror)| mirror).collect();
        let (_, FailedMirror { host, fault }) = decisive;
        Error::Request { what: self.blob.what.clone(), host, fault, tried }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate for a message")]
fn to_integer(rate: f64) -> u64 {
    rate as u64
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
