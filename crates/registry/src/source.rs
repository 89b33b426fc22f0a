//! The places from which a blob can be fetched, and the order in which its parts try them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use reqwest::Url;

use super::Inner;
use super::error::clean_url;
use super::hosts::Endpoint;
use super::pace::Peers;

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
    /// Mirrors, the registry, foreign locations.
    pub(crate) sources: Vec<Source>,
    /// `true` if the parts use the mirrors in turn.
    pub(crate) spreads: bool,
    /// Bytes received so far.
    pub(crate) arrived: AtomicU64,
    /// `true` once a source has announced or honoured ranges.
    pub(crate) ranged: AtomicBool,
    /// `true` once a source has refused or ignored a range.
    pub(crate) unranged: AtomicBool,
}

impl Blob {
    /// Returns the indices of the sources in the order in which part number `part` tries them.
    pub(crate) fn order(&self, part: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.sources.len()).collect();
        let mirrors = self.sources.iter().take_while(|source| source.is_mirror()).count();
        if self.spreads && mirrors > 1 {
            order[..mirrors].rotate_left(part % mirrors);
        }
        let rank = |at: &usize| (self.sources[*at].is_foreign(), self.sources[*at].is_avoided());
        order.sort_by_key(rank);
        order
    }

    /// Returns the bytes received so far, over all connections.
    pub(crate) fn received(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }

    pub(crate) fn has_ranges(&self) -> bool {
        self.ranged.load(Ordering::Relaxed)
    }

    pub(crate) fn lacks_ranges(&self) -> bool {
        self.unranged.load(Ordering::Relaxed)
    }
}

/// A source of a blob.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) location: Location,
    pub(crate) peers: Arc<Peers>,
    /// The source failed or is slow, so other parts try it last.
    avoided: AtomicBool,
}

/// A location of a blob.
#[derive(Debug)]
pub(crate) enum Location {
    /// A mirror or the registry.
    Registry(Box<Endpoint>),
    /// A foreign location, used only if all sources before it returned 404.
    Foreign(Url),
}

impl Location {
    fn host(&self) -> String {
        match self {
            Location::Registry(endpoint) => endpoint.host(),
            Location::Foreign(url) => clean_url(url),
        }
    }
}

impl Source {
    pub(crate) fn new(inner: &Inner, location: Location) -> Self {
        Source { peers: inner.peers(&location.host()), location, avoided: AtomicBool::new(false) }
    }

    pub(crate) fn host(&self) -> String {
        self.location.host()
    }

    pub(crate) fn is_mirror(&self) -> bool {
        matches!(&self.location, Location::Registry(endpoint) if endpoint.namespace.is_some())
    }

    pub(crate) fn is_foreign(&self) -> bool {
        matches!(self.location, Location::Foreign(_))
    }

    fn is_avoided(&self) -> bool {
        self.avoided.load(Ordering::Relaxed)
    }

    /// Makes other parts try this source last.
    pub(crate) fn avoid(&self) {
        self.avoided.store(true, Ordering::Relaxed);
    }
}
