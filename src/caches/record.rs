//! What is stored of an image cache.

use std::collections::VecDeque;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::event::SealedImage;
use larder_model::image_cache::{CacheId, Spec, Status, TenantName};
use larder_model::seal::Totals;

/// Most events that a record keeps; the oldest go first.
pub const MAX_EVENTS: usize = 64;
/// Most layers whose history a record keeps.
pub const MAX_LAYERS: usize = 4096;

/// One image cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its identity, for good.
    pub id: CacheId,
    /// Whose it is.
    pub tenant: TenantName,
    /// What was ordered.
    pub spec: Spec,
    /// When.
    pub created_at: DateTime<Utc>,
    /// What the tenant is told.
    pub status: Status,
    /// Since when.
    pub status_since: DateTime<Utc>,
    /// The reason of a failure or of an abnormal state.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub message: Option<String>,
    /// The class of the failure that the message tells, for programs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub class: Option<Class>,
    /// The sealed volume that is served, if there is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub content: Option<Content>,
    /// The build that was asked for and has not ended.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub work: Option<Work>,
    /// The archive that it is made of instead of registries.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub import: Option<Import>,
    /// Number of the last volume that was begun; the next one gets the next number.
    pub generation: u32,
    /// The last events, oldest first.
    #[serde(default)]
    pub events: VecDeque<Happened>,
    /// Number of the last event.
    #[serde(default)]
    pub sequence: u64,
    /// Who ordered it.
    #[serde(skip_serializing_if = "OrderedBy::is_api", default)]
    pub ordered_by: OrderedBy,
    /// How far the build is that is under way, for daemons that do not run it: the images that are resolved. Written now and
    /// then where several daemons share the records, and never on a host.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub progress: Vec<ImageDetails>,
}

/// Who ordered an image cache: decides which pull secrets it may name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderedBy {
    /// A tenant over HTTP: those that the configuration allows the tenant.
    #[default]
    Api,
    /// Somebody who may write to the store of a cluster: those of the namespace, and those that say so themselves.
    Cluster,
}

impl OrderedBy {
    fn is_api(&self) -> bool {
        *self == OrderedBy::Api
    }
}

/// One image, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDetails {
    /// The reference as given.
    pub reference: String,
    /// The manifest it stands for.
    pub manifest: Digest,
    /// Number of its layers.
    pub layers: usize,
    /// Of these, on the volume.
    pub layers_done: usize,
    /// Compressed size of these layers, bytes.
    pub compressed_size: u64,
    /// Bytes of them that came from a registry so far.
    pub received: u64,
}

/// A build to carry out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// Number of the volume that is filled.
    pub generation: u32,
    /// How often a builder was started for it.
    pub attempts: u32,
    /// What the build waits for outside of its builder, while it waits.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub waiting: Option<String>,
}

impl Work {
    /// The work on a volume, before the first attempt.
    pub fn new(generation: u32) -> Self {
        Work { generation, attempts: 0, waiting: None }
    }
}

/// An archive that was sent. It is kept as long as there is work to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// Its size, bytes.
    pub bytes: u64,
}

impl Import {
    /// GiB that it takes on the host, rounded up.
    pub fn gib(self) -> u64 {
        self.bytes.div_ceil(1 << 30)
    }
}

/// What a sealed volume holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Content {
    /// Number of its volume.
    pub generation: u32,
    /// When it was sealed.
    pub sealed_at: DateTime<Utc>,
    /// Digest of what `cache.json` says.
    pub digest: Digest,
    /// Images and what they resolved to.
    pub images: Vec<SealedImage>,
    /// Sums over all layers.
    pub totals: Totals,
    /// The layers, by what became of them; at most [`MAX_LAYERS`].
    pub layers: Vec<LayerHistory>,
    /// The snapshot that the volume is, in a cluster.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub snapshot: Option<ClusterSnapshot>,
}

/// A volume that lies in the storage of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSnapshot {
    /// Namespace of the VolumeSnapshot that owns it.
    pub namespace: String,
    /// Name of that; copies in other namespaces have the same.
    pub name: String,
    /// What the storage calls it.
    pub handle: String,
    /// The CSI driver that has it.
    pub driver: String,
    /// Smallest volume that it can be restored to, bytes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub restore_size: Option<u64>,
}

/// What became of one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerHistory {
    /// Digest of the blob.
    pub blob: Digest,
    /// Images that have it, as given.
    pub images: Vec<String>,
    /// Size of the blob, bytes.
    pub compressed_size: u64,
    /// Size of the tar, bytes.
    pub size: u64,
    /// From the start of its fetch to its commit, milliseconds.
    pub elapsed_ms: u64,
    /// Where it came from.
    pub origin: Origin,
    /// The cache whose volume it was read from, where it was.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub from: Option<CacheId>,
}

/// Where a layer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Its registry, or the archive that was sent.
    Fetched,
    /// An earlier attempt at this volume.
    Present,
    /// Another volume of the tenant on this host.
    Reused,
}

/// Something that happened to a cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Happened {
    /// Number within the cache, from 1.
    pub sequence: u64,
    /// When.
    pub time: DateTime<Utc>,
    /// The status from then on.
    pub status: Status,
    /// What happened, for people.
    pub message: String,
}

impl Record {
    /// A cache that has just been ordered.
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
            ordered_by: OrderedBy::default(),
            progress: Vec::new(),
        };
        record.note(now, "ordered");
        record
    }

    /// Notes an event under the present status.
    pub fn note(&mut self, now: DateTime<Utc>, message: impl Into<String>) {
        self.sequence += 1;
        let happened =
            Happened { sequence: self.sequence, time: now, status: self.status, message: message.into() };
        self.events.push_back(happened);
        while self.events.len() > MAX_EVENTS {
            self.events.pop_front();
        }
    }

    /// Notes an event unless it repeats the last one, as after each change of the daemon that leads.
    pub fn note_once(&mut self, now: DateTime<Utc>, message: String) {
        let repeats = |last: &Happened| last.message == message && last.status == self.status;
        if !self.events.back().is_some_and(repeats) {
            self.note(now, message);
        }
    }

    /// Why the cache is in an abnormal state, or what its first build waits for.
    pub fn reason(&self) -> Option<&str> {
        let waiting =
            self.work.as_ref().filter(|_| self.content.is_none()).and_then(|work| work.waiting.as_deref());
        self.message.as_deref().or(waiting)
    }

    /// Goes over to another status, which is an event.
    pub fn turn(&mut self, status: Status, now: DateTime<Utc>, why: impl Into<String>) {
        self.status = status;
        self.status_since = now;
        self.note(now, why);
    }

    /// GiB that the cache may occupy on this host and that nobody else can have: its size for the volume that is served
    /// and for the one that is filled, and the archive that it is filled from. A failed cache has none of them.
    pub fn reserved_gib(&self) -> u64 {
        let volumes = match self.status {
            Status::Failed => 0,
            _ => 1 + u64::from(self.is_refreshing()),
        };
        let archive = if self.needs_archive() { self.import.map_or(0, Import::gib) } else { 0 };
        volumes * u64::from(self.spec.size_gib) + archive
    }

    /// Whether the archive that was sent is still to be read.
    pub fn needs_archive(&self) -> bool {
        self.import.is_some() && self.work.is_some() && self.status != Status::Deleting
    }

    /// Whether a second volume is being filled beside the one that is served.
    pub fn is_refreshing(&self) -> bool {
        self.content.is_some() && self.work.is_some()
    }

    /// Whether nothing more will happen to it until somebody asks, or time passes.
    pub fn is_settled(&self) -> bool {
        self.work.is_none() && !matches!(self.status, Status::Creating | Status::Deleting)
    }

    /// Whether a volume is the one that is served or the one that is filled.
    pub fn needs_volume(&self, generation: u32) -> bool {
        let serves = self.content.as_ref().is_some_and(|content| content.generation == generation);
        !matches!(self.status, Status::Deleting | Status::Failed) && (serves || self.fills(generation))
    }

    /// Whether a volume is the one that is filled.
    pub fn fills(&self, generation: u32) -> bool {
        self.work.as_ref().is_some_and(|work| work.generation == generation)
    }

    /// When its retention ends; none is never.
    pub fn expires_at(&self) -> Option<DateTime<Utc>> {
        let days = self.spec.retention_days;
        (days > 0).then(|| self.created_at + chrono::TimeDelta::days(i64::from(days)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_events_stay() {
        let spec = Spec {
            name: "web".parse().unwrap(),
            images: vec!["nginx".parse().unwrap()],
            size_gib: 20,
            retention_days: 1,
            cluster: "c".into(),
            pull_secrets: Vec::new(),
        };
        let now = DateTime::UNIX_EPOCH;
        let mut record = Record::new(CacheId::random(), "team".parse().unwrap(), spec, now);
        for number in 0..100 {
            record.note(now, format!("{number}"));
        }
        assert_eq!(record.events.len(), MAX_EVENTS);
        assert_eq!((record.sequence, record.events.back().unwrap().sequence), (101, 101));
        assert_eq!(record.expires_at().unwrap().timestamp(), 86_400);
        assert_eq!(record.reserved_gib(), 20);
        record.import = Some(Import { bytes: (2 << 30) + 1 });
        assert!(record.needs_archive());
        assert_eq!(record.reserved_gib(), 23);
        record.work = None;
        assert_eq!(record.reserved_gib(), 20);
        record.turn(Status::Failed, now, "no such image");
        assert_eq!(record.reserved_gib(), 0);
        let json = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&json).unwrap(), record);
    }
}
