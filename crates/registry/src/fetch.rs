//! A stretch of one blob, byte after byte, whatever happens to the connections on the way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::CONTENT_RANGE;
use reqwest::{StatusCode, Url};
use tokio::time::Instant;

use super::error::{Error, Fault, clean_url};
use super::hosts::Endpoint;
use super::pace::Pace;
use super::request::{self, Ask};
use super::transport::Reply;
use super::{Inner, Retry};

/// Connections that one stretch may use up: an honest network does not cut more often.
const MAX_CONNECTIONS: u32 = 10_000;

/// The blob and where it may be had.
#[derive(Debug)]
pub(crate) struct Blob {
    pub(crate) inner: Arc<Inner>,
    /// For messages: `reading blob sha256:… of r.io/team/app`.
    pub(crate) what: String,
    pub(crate) repository: String,
    /// `blobs/<digest>`.
    pub(crate) path: String,
    pub(crate) size: u64,
    pub(crate) sources: Vec<Source>,
}

/// A place to have a blob from.
#[derive(Debug)]
pub(crate) enum Source {
    /// A mirror or the registry.
    Registry(Box<Endpoint>),
    /// A foreign location, asked only when all before it answered 404.
    Foreign(Url),
}

impl Source {
    fn host(&self) -> String {
        match self {
            Source::Registry(endpoint) => endpoint.host(),
            Source::Foreign(url) => clean_url(url),
        }
    }
}

/// The bytes from `at` to `end`, delivered in order and without a gap.
#[derive(Debug)]
pub(crate) struct Fetch {
    blob: Arc<Blob>,
    at: u64,
    end: u64,
    source: usize,
    reply: Option<Answer>,
    /// Tries since the last byte.
    attempt: u32,
    connections: u32,
    pace: Pace,
    /// Range led to nonsense here: ask for the whole and skip.
    whole: bool,
}

/// An answer's body and where in the blob its next byte lies.
#[derive(Debug)]
struct Answer {
    reply: Reply,
    at: u64,
    /// Where the body must end.
    until: u64,
    ranged: bool,
}

impl Fetch {
    pub(crate) fn new(blob: Arc<Blob>, at: u64, end: u64) -> Self {
        let options = &blob.inner.options;
        let pace = Pace::new(options.min_rate, options.ranges.parallel);
        Fetch { blob, at, end, source: 0, reply: None, attempt: 0, connections: 0, pace, whole: false }
    }

    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Moves the end, for a server that sends the whole blob anyway.
    pub(crate) fn extend(&mut self, end: u64) {
        self.end = end;
    }

    /// Whether the present answer honours ranges; none without an answer.
    pub(crate) fn ranged(&self) -> Option<bool> {
        self.reply.as_ref().map(|answer| answer.ranged)
    }

    /// Connects, so that [`ranged`](Self::ranged) is known.
    pub(crate) async fn open(&mut self) -> Result<(), Error> {
        while self.reply.is_none() {
            match self.ask().await {
                Ok(answer) => self.reply = Some(answer),
                Err(fault) => self.recover(fault).await?,
            }
        }
        Ok(())
    }

    /// The next bytes; none at the end of the stretch.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while self.at < self.end {
            self.open().await?;
            match self.read().await {
                Ok(chunk) if chunk.is_empty() => {}
                Ok(chunk) => {
                    self.at += chunk.len() as u64;
                    self.attempt = 0;
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

    async fn ask(&mut self) -> Result<Answer, Fault> {
        let blob = &*self.blob;
        let (asked, idle) = (Instant::now(), AtomicU64::new(0));
        self.connections += 1;
        let ranged = !self.whole && (self.at, self.end) != (0, blob.size);
        let ask = Ask {
            repository: &blob.repository,
            path: &blob.path,
            accept: None,
            range: ranged.then_some((self.at, self.end - 1)),
            idle: Some(&idle),
        };
        let reply = match &blob.sources[self.source] {
            Source::Registry(endpoint) => request::get(&blob.inner, endpoint, ask).await,
            Source::Foreign(url) => request::get_foreign(&blob.inner, url, ask).await,
        };
        let idle = Duration::from_micros(idle.load(Ordering::Relaxed));
        self.pace.count(asked.elapsed().saturating_sub(idle), 0)?;
        let reply = reply?;
        if reply.status() == StatusCode::PARTIAL_CONTENT {
            let until = content_range(reply.header(CONTENT_RANGE.as_str()), ask.range, blob.size)?;
            return Ok(Answer { reply, at: self.at, until, ranged: true });
        }
        if let Some(length) = reply.length().filter(|length| *length != blob.size) {
            return Err(Fault::Corrupt(format!("it has {length} bytes, its descriptor says {}", blob.size)));
        }
        Ok(Answer { reply, at: 0, until: blob.size, ranged: false })
    }

    /// The next bytes that belong to the stretch; empty when all of a chunk was skipped.
    async fn read(&mut self) -> Result<Bytes, Fault> {
        let Some(answer) = &mut self.reply else {
            return Ok(Bytes::new());
        };
        let chunk = answer.reply.chunk().await;
        let length = chunk.as_ref().map_or(0, |chunk| chunk.as_ref().map_or(0, Bytes::len));
        let paced = self.pace.count(answer.reply.take_waited(), length);
        let chunk = chunk?;
        // A layer that is whole is not too slow any more.
        if self.end - self.at > length as u64 {
            paced?;
        }
        let Some(mut chunk) = chunk else {
            return Err(Fault::transient(format!(
                "the body ended early, at byte {} of {}",
                answer.at, self.blob.size
            )));
        };
        let start = answer.at;
        answer.at += chunk.len() as u64;
        if answer.at > answer.until {
            return Err(too_long(self.blob.size));
        }
        let skip = self.at.saturating_sub(start).min(chunk.len() as u64);
        let keep = (self.end - self.at).min(chunk.len() as u64 - skip);
        #[expect(clippy::cast_possible_truncation, reason = "both are at most the chunk's length")]
        let stretch = skip as usize..(skip + keep) as usize;
        chunk = chunk.slice(stretch);
        Ok(chunk)
    }

    /// Whether the body really ends where it must, if it says so soon.
    async fn finish(&mut self) -> Result<(), Error> {
        let Some(mut answer) = self.reply.take().filter(|answer| answer.at == answer.until) else {
            return Ok(());
        };
        let patience = Duration::from_secs(2);
        // All bytes are here: a connection that fails after them does no harm.
        match tokio::time::timeout(patience, answer.reply.chunk()).await {
            Ok(Ok(Some(chunk))) if !chunk.is_empty() => Err(self.error(too_long(self.blob.size))),
            _ => Ok(()),
        }
    }

    /// Waits and leaves the fetch ready to ask again, here or at the next source; or gives up.
    async fn recover(&mut self, mut fault: Fault) -> Result<(), Error> {
        self.reply = None;
        self.attempt += 1;
        let retries = &self.blob.inner.options.retries;
        if matches!(fault, Fault::Range(_)) {
            self.whole = true;
        }
        // A foreign location is asked only where the blob is absent, which no retry heals.
        let is_followed = matches!(self.blob.sources.get(self.source + 1), Some(Source::Registry(_)));
        let wait = retries.again(&fault, self.attempt, is_followed);
        if let Some(wait) = wait.filter(|_| self.connections < MAX_CONNECTIONS) {
            self.blob.inner.observer.retried(&Retry {
                host: self.blob.sources[self.source].host(),
                what: self.blob.what.clone(),
                reason: fault.to_string(),
                wait,
            });
            tokio::time::sleep(wait).await;
            match self.pace.count(wait, 0) {
                Ok(()) => return Ok(()),
                Err(slow) => fault = slow,
            }
        }
        let absent = matches!(fault, Fault::NotFound(_));
        match self.blob.sources.get(self.source + 1) {
            Some(Source::Registry(_)) => {}
            Some(Source::Foreign(_))
                if absent || matches!(self.blob.sources[self.source], Source::Foreign(_)) => {}
            _ => return Err(self.error(fault)),
        }
        self.source += 1;
        self.pace.reset();
        self.attempt = 0;
        self.whole = false;
        Ok(())
    }

    fn error(&self, fault: Fault) -> Error {
        Error::Request { what: self.blob.what.clone(), host: self.blob.sources[self.source].host(), fault }
    }
}

fn too_long(size: u64) -> Fault {
    Fault::Corrupt(format!("it has more bytes than the {size} of its descriptor"))
}

/// Where the body of a 206 ends, if its Content-Range (RFC 9110, 14.4) is what was asked for or the start of it.
fn content_range(given: Option<&str>, asked: Option<(u64, u64)>, size: u64) -> Result<u64, Fault> {
    let parsed = given.and_then(|given| {
        let (range, total) = given.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let total = if total == "*" { size } else { total.parse::<u64>().ok()? };
        Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?, total))
    });
    match (parsed, asked) {
        (Some((first, last, total)), Some((want, end)))
            if first == want && (first..=end).contains(&last) && total == size =>
        {
            Ok(last + 1)
        }
        _ => {
            let given = super::error::printable(given.unwrap_or("nothing"));
            let asked =
                asked.map_or("the whole".to_owned(), |(first, last)| format!("bytes {first}-{last}/{size}"));
            Err(Fault::Range(format!("a 206 has Content-Range {given}, asked for was {asked}")))
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
