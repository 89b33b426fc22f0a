//! The stored record of an image cache.

mod transitions;

use std::collections::VecDeque;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

pub(in crate::caches) use self::transitions::cut;
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::event::SealedImage;
use larder_model::image_cache::{CacheId, Spec, Status, TenantName};
use larder_model::seal::Totals;
use larder_model::timeline::Timeline;

/// Maximum number of events that a record keeps. The oldest are dropped first.
pub const MAX_EVENTS: usize = 64;
/// Maximum number of layers whose history a record keeps.
pub const MAX_LAYERS: usize = 4096;

/// The stored record of one image cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The identity of the cache, which never changes.
    pub id: CacheId,
    /// The tenant that owns it.
    pub tenant: TenantName,
    /// The specification that was ordered.
    pub spec: Spec,
    /// The time of the order.
    pub created_at: DateTime<Utc>,
    /// The status that the API reports.
    pub status: Status,
    /// Time of the last status change.
    pub status_since: DateTime<Utc>,
    /// The reason for a failure or an abnormal state.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub message: Option<String>,
    /// The class of the failure that `message` describes, for programs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub class: Option<Class>,
    /// The sealed volume that is served. `None` until the first build succeeds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub content: Option<Content>,
    /// The build that was requested and has not ended.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub work: Option<Work>,
    /// The archive that the cache is made from, instead of registries.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub import: Option<Import>,
    /// Number of the volume that was started last. The next volume gets the next number.
    pub generation: u32,
    /// The most recent events, oldest first.
    #[serde(default)]
    pub events: VecDeque<CacheEvent>,
    /// Number of the last event.
    #[serde(default)]
    pub sequence: u64,
    /// The interface through which the cache was ordered.
    #[serde(skip_serializing_if = "RequestOrigin::is_api", default)]
    pub ordered_by: RequestOrigin,
    /// The resolved images and how far the build in progress is with them, for daemons that do not run it. It
    /// is written periodically where several daemons share the records, and never on a host.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub progress: Vec<ImageDetails>,
    /// The timeline of the last attempt at a build. A cluster does not store it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub timeline: Option<Box<Timeline>>,
}

/// The interface through which a cache was ordered. It determines which pull secrets the cache can name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestOrigin {
    /// A tenant over HTTP: the secrets that the configuration allows the tenant.
    #[default]
    Api,
    /// A user with write access to the store of a cluster: the secrets of the namespace, and secrets that
    /// allow this namespace.
    Cluster,
}

impl RequestOrigin {
    fn is_api(&self) -> bool {
        *self == RequestOrigin::Api
    }
}

/// One image of a cache, as far as the build has resolved it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDetails {
    /// The image reference as given.
    pub reference: String,
    /// Digest of the manifest that it resolved to.
    pub manifest: Digest,
    /// Total number of its layers.
    pub layers: usize,
    /// Number of its layers on the volume.
    pub layers_done: usize,
    /// Compressed size of all its layers, bytes.
    pub compressed_size: u64,
    /// Bytes of its layers received from a registry so far.
    pub received: u64,
}

/// A build that is to be carried out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// Number of the volume to fill.
    pub generation: u32,
    /// Number of builders that were started for it.
    pub attempts: u32,
    /// The external condition that the build waits for. `None` if it is not waiting.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub waiting: Option<String>,
    /// The error of the last attempt. `None` if none has failed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_error: Option<String>,
}

impl Work {
    /// Creates the work on a volume, before the first attempt.
    pub fn new(generation: u32) -> Self {
        Work { generation, attempts: 0, waiting: None, last_error: None }
    }
}

/// An uploaded archive. It is kept until no work needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// Size of the archive, bytes.
    pub bytes: u64,
}

impl Import {
    /// Space that the archive takes on the host, GiB, rounded up.
    pub fn gib(self) -> u64 {
        self.bytes.div_ceil(1 << 30)
    }
}

/// Contents of a sealed volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Content {
    /// Generation number of the volume.
    pub generation: u32,
    /// Time at which it was sealed.
    pub sealed_at: DateTime<Utc>,
    /// Digest of the content that `cache.json` describes.
    pub digest: Digest,
    /// The images and the digests that they resolved to.
    pub images: Vec<SealedImage>,
    /// Sums over all layers.
    pub totals: Totals,
    /// The layers and their history; at most [`MAX_LAYERS`].
    pub layers: Vec<LayerHistory>,
    /// The VolumeSnapshot of the volume, in a cluster.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub snapshot: Option<ClusterSnapshot>,
}

/// A volume in the storage of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSnapshot {
    /// Namespace of the VolumeSnapshot that owns the storage.
    pub namespace: String,
    /// Name of that VolumeSnapshot. Copies in other namespaces have the same name.
    pub name: String,
    /// The snapshot handle in the storage system.
    pub handle: String,
    /// Name of its CSI driver.
    pub driver: String,
    /// Size of the smallest volume that it can be restored to, bytes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub restore_size: Option<u64>,
}

/// The history of one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerHistory {
    /// Digest of the blob.
    pub blob: Digest,
    /// Images that contain it, as given.
    pub images: Vec<String>,
    /// Compressed size of the blob, bytes.
    pub compressed_size: u64,
    /// Uncompressed size of the tar, bytes.
    pub size: u64,
    /// Time from the start of its fetch to its commit, milliseconds.
    pub elapsed_ms: u64,
    /// The source of the layer.
    pub origin: Origin,
    /// The cache whose volume the layer was copied from. `None` for other sources.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub from: Option<CacheId>,
}

/// The source of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The registry or the uploaded archive.
    Fetched,
    /// An earlier attempt at this volume.
    Present,
    /// Another volume of the tenant on this host.
    Reused,
}

/// An event in the life of a cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CacheEvent {
    /// Number within the cache, starting at 1.
    pub sequence: u64,
    /// Time of the event.
    pub time: DateTime<Utc>,
    /// The status after the event.
    pub status: Status,
    /// A description of the event for people.
    pub message: String,
}

impl Record {
    /// Creates the record of a newly ordered cache.
    pub fn new(id: CacheId, tenant: TenantName, spec: Spec, now: DateTime<Utc>) -> Self {
        let mut record = Record {
            id,
            tenant,
            spec,
            created_at: now,
            status: Status::Creating,
            status_since: now,
            message: None,
            class: None,
            content: None,
            work: Some(Work::new(1)),
            import: None,
            generation: 1,
            events: VecDeque::new(),
            sequence: 0,
            ordered_by: RequestOrigin::default(),
            progress: Vec::new(),
            timeline: None,
        };
        record.note(now, "ordered");
        record
    }

    /// Appends an event with the current status.
    pub fn note(&mut self, now: DateTime<Utc>, message: impl Into<String>) {
        self.sequence += 1;
        let happened =
            CacheEvent { sequence: self.sequence, time: now, status: self.status, message: message.into() };
        self.events.push_back(happened);
        while self.events.len() > MAX_EVENTS {
            self.events.pop_front();
        }
    }

    /// Appends an event unless it repeats the last one, for example after a change of the leading daemon.
    pub fn note_once(&mut self, now: DateTime<Utc>, message: String) {
        let repeats = |last: &CacheEvent| last.message == message && last.status == self.status;
        if !self.events.back().is_some_and(repeats) {
            self.note(now, message);
        }
    }

    /// Returns the reason for an abnormal state, or what the first build waits for.
    pub fn reason(&self) -> Option<&str> {
        let waiting =
            self.work.as_ref().filter(|_| self.content.is_none()).and_then(|work| work.waiting.as_deref());
        self.message.as_deref().or(waiting)
    }

    /// Returns the GiB that are reserved for the cache on this host. This is its size for the served volume
    /// and again for the volume being filled, plus the archive that it is filled from. A failed cache
    /// reserves nothing.
    pub fn reserved_gib(&self) -> u64 {
        let volumes = match self.status {
            Status::Failed => 0,
            _ => 1 + u64::from(self.is_refreshing()),
        };
        let archive = if self.needs_archive() { self.import.map_or(0, Import::gib) } else { 0 };
        volumes * u64::from(self.spec.size_gib) + archive
    }

    /// Returns `true` if the uploaded archive is still needed.
    pub fn needs_archive(&self) -> bool {
        self.import.is_some() && self.wants_build()
    }

    /// Returns `true` if a second volume is being filled next to the served one.
    pub fn is_refreshing(&self) -> bool {
        self.content.is_some() && self.work.is_some()
    }

    /// Returns `true` if nothing more happens to the cache without a request or the passage of time.
    pub fn is_settled(&self) -> bool {
        self.work.is_none() && !matches!(self.status, Status::Creating | Status::Deleting)
    }

    /// Returns `true` if a volume is the served one or the one being filled.
    pub fn needs_volume(&self, generation: u32) -> bool {
        let serves = self.content.as_ref().is_some_and(|content| content.generation == generation);
        !matches!(self.status, Status::Deleting | Status::Failed) && (serves || self.fills(generation))
    }

    /// Returns `true` if a builder must fill a volume.
    pub fn wants_build(&self) -> bool {
        self.work.is_some() && self.status != Status::Deleting
    }

    /// Returns `true` if a volume is the one being filled.
    pub fn fills(&self, generation: u32) -> bool {
        self.work.as_ref().is_some_and(|work| work.generation == generation)
    }

    /// Returns `true` if the retention has ended.
    pub fn is_expired(&self, now: DateTime<Utc>) -> bool {
        self.expires_at().is_some_and(|at| at <= now)
    }

    /// Returns the end of the retention. `None` if the cache never expires.
    pub fn expires_at(&self) -> Option<DateTime<Utc>> {
        let days = self.spec.retention_days;
        (days > 0).then(|| self.created_at + chrono::TimeDelta::days(i64::from(days)))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Returns the record of a new cache of 20 GiB that expires after a day.
    pub(crate) fn record() -> Record {
        let spec = Spec {
            name: "web".parse().unwrap(),
            images: vec!["nginx".parse().unwrap()],
            size_gib: 20,
            retention_days: 1,
            cluster: "c".into(),
            pull_secrets: Vec::new(),
        };
        Record::new(CacheId::random(), "team".parse().unwrap(), spec, DateTime::UNIX_EPOCH)
    }

    #[test]
    fn the_most_recent_events_are_kept() {
        let now = DateTime::UNIX_EPOCH;
        let mut record = record();
        for number in 0..100 {
            record.note(now, format!("{number}"));
        }
        assert_eq!(record.events.len(), MAX_EVENTS);
        assert_eq!((record.sequence, record.events.back().unwrap().sequence), (101, 101));
        assert_eq!(record.expires_at().unwrap().timestamp(), 86_400);
        assert!(!record.is_expired(now + chrono::TimeDelta::seconds(86_399)));
        assert!(record.is_expired(now + chrono::TimeDelta::seconds(86_400)));
        assert_eq!(record.reserved_gib(), 20);
        record.import = Some(Import { bytes: (2 << 30) + 1 });
        assert!(record.needs_archive());
        assert_eq!(record.reserved_gib(), 23);
        record.work = None;
        assert_eq!(record.reserved_gib(), 20);
        record.set_status(Status::Failed, now, "no such image");
        assert_eq!(record.reserved_gib(), 0);
        let json = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&json).unwrap(), record);
    }
}
