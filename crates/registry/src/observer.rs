//! What the client reports while it works.

use std::time::Duration;

/// Callbacks for retries and warnings.
pub trait Observer: Send + Sync {
    /// Called when a request failed, before the wait for its next attempt.
    fn retried(&self, retry: &Retry);

    /// Called when a connection that is much slower than others was closed, before its replacement opens.
    fn replaced(&self, _replacement: &Replacement) {}

    /// Called once for each mirror that fails, before the next host is used. A mirror without the requested
    /// content does not fail.
    fn mirror_failed(&self, _host: &str, _reason: &str) {}

    /// Called once for each new warning that a host sends for the user. The text is escaped and truncated.
    fn warned(&self, _host: &str, _text: &str) {}
}

/// An observer that ignores everything.
#[derive(Clone, Copy, Debug)]
pub struct NoopObserver;

impl Observer for NoopObserver {
    fn retried(&self, _: &Retry) {}
}

/// A request that will be retried. Contains no secret and no URL query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Host that received the request.
    pub host: String,
    /// Description of the operation.
    pub what: String,
    /// Reason of the failure.
    pub reason: String,
    /// Wait before the next attempt.
    pub wait: Duration,
}

/// A slow connection that is replaced by another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replacement {
    /// Host to which the connection was.
    pub host: String,
    /// Description of the operation.
    pub what: String,
    /// Rate of the connection, bytes per second.
    pub rate: u64,
    /// Median rate of the connections to the host, bytes per second.
    pub median: u64,
}
