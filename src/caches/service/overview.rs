//! Overviews of caches for lists: progress of builds, space and attachments.

use std::collections::HashMap;
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::details::images;
use super::{Service, volumes_failed};
use crate::caches::error::Error;
use crate::caches::progress::Progress;
use crate::caches::record::Record;
use crate::caches::volumes::{AttachedVolume, UNLIMITED};
use crate::config::tenant::ADMIN;
use larder_model::image_cache::{CacheId, TenantName};
use larder_model::runtime::Runtime;

/// Build, space and attachments of a cache, for lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overview {
    /// The tenant that owns it.
    pub tenant: TenantName,
    /// Time of the order.
    pub ordered_at: DateTime<Utc>,
    /// Time at which the retention ends.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expires_at: Option<DateTime<Utc>>,
    /// The build that is queued or in progress.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub build: Option<BuildOverview>,
    /// Size of the content of its volumes, bytes: the layers on the served volume, and those that a build in
    /// progress has written.
    pub used_bytes: u64,
    /// Space that is reserved for it, bytes.
    pub reserved_bytes: u64,
    /// Places on this host where its volumes are attached.
    pub attached: Vec<AttachedAt>,
}

/// Progress of a build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildOverview {
    /// Number of builders started for it. 0 while it is queued.
    pub attempts: u32,
    /// Error of the last attempt.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_error: Option<String>,
    /// `true` if the served volume stays in use until the new one is sealed.
    pub refreshing: bool,
    /// Bytes received so far.
    pub received: u64,
    /// Bytes that the build fetches. `None` until planning is complete.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fetch_bytes: Option<u64>,
    /// Number of layers on the volume. A layer of two images counts twice.
    pub layers_done: usize,
    /// Number of layers of all images that are resolved so far.
    pub layers: usize,
}

/// A place where a volume is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedAt {
    /// Generation number of the attached volume.
    pub generation: u32,
    /// Time of the attachment.
    pub since: DateTime<Utc>,
    /// Runtimes that use it.
    pub runtimes: Vec<Runtime>,
    /// Mount point on the host. Only the tenant `admin` sees it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub at: Option<PathBuf>,
}

/// The space of a host, and what its caches take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostOverview {
    /// Space that all caches can reserve together, bytes. `None` if there is no limit.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub capacity_bytes: Option<u64>,
    /// Space that all caches reserve, bytes.
    pub reserved_bytes: u64,
    /// Free space of the file system that contains the volumes, bytes. `None` in a cluster.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub free_bytes: Option<u64>,
    /// Number of queued builds.
    pub queued: usize,
    /// Number of builds in progress.
    pub building: usize,
}

/// Places where volumes are attached, by cache.
type Attached = HashMap<CacheId, Vec<AttachedAt>>;

/// The caches that a list contains.
#[derive(Clone, Copy, Debug)]
pub enum Whose<'a> {
    /// The caches of one tenant.
    Own(&'a TenantName),
    /// The caches of all tenants. Only the tenant `admin` can list them.
    All,
}

impl Service {
    /// Lists caches with their overviews, oldest first, each as `format` returns it.
    ///
    /// # Errors
    /// Fails if the records or the attached volumes cannot be read.
    pub async fn overview<T>(
        &self,
        whose: Whose<'_>,
        format: impl Fn(&Record, Overview) -> T,
    ) -> Result<Vec<T>, Error> {
        match whose {
            Whose::Own(tenant) => {
                let mut attached = self.attachments(tenant.as_str() == ADMIN).await?;
                let records = self.records_of(tenant).await?;
                let records = records.iter().map(|stored| &stored.record);
                Ok(records.map(|record| format(record, self.overview_with(record, &mut attached))).collect())
            }
            Whose::All => {
                let mut attached = self.attachments(true).await?;
                let survey = self.records().survey().await?;
                let mut records: Vec<&Record> = survey.values().collect();
                records.sort_by_key(|record| (record.created_at, record.id));
                let records = records.into_iter();
                Ok(records.map(|record| format(record, self.overview_with(record, &mut attached))).collect())
            }
        }
    }

    /// Returns the overview of one cache. `with_path` includes the paths on the host.
    ///
    /// # Errors
    /// Fails if the attached volumes cannot be read.
    pub async fn overview_of(&self, record: &Record, with_path: bool) -> Result<Overview, Error> {
        let mut attached = self.attachments(with_path).await?;
        Ok(self.overview_with(record, &mut attached))
    }

    /// Returns the space of the host and the number of builds, of all tenants together.
    ///
    /// # Errors
    /// Fails if the records or the capacity cannot be read.
    pub async fn host(&self) -> Result<HostOverview, Error> {
        let survey = self.records().survey().await?;
        let reserved: u64 = survey.values().map(Record::reserved_gib).sum();
        let capacity = self.admission().capacity_gib()?;
        Ok(HostOverview {
            capacity_bytes: capacity.checked_mul(1 << 30).filter(|_| capacity < UNLIMITED),
            reserved_bytes: reserved.saturating_mul(1 << 30),
            free_bytes: self.0.volumes.free_bytes().map_err(|e| volumes_failed(&e))?,
            queued: self.admission().queued(),
            building: self.0.builds.len(),
        })
    }

    fn overview_with(&self, record: &Record, attached: &mut Attached) -> Overview {
        let places = attached.remove(&record.id).unwrap_or_default();
        self.0.builds.progress(record.id, |progress| Overview::of(record, progress, places))
    }

    /// Returns where volumes are attached on this host, by cache.
    async fn attachments(&self, with_path: bool) -> Result<Attached, Error> {
        let all = self.0.volumes.attached().await.map_err(|e| volumes_failed(&e))?;
        let mut by_cache = Attached::new();
        for AttachedVolume { volume, attachment } in all {
            by_cache.entry(volume.id).or_default().push(AttachedAt {
                generation: volume.generation,
                since: attachment.since,
                runtimes: attachment.runtimes,
                at: with_path.then_some(attachment.at),
            });
        }
        Ok(by_cache)
    }
}

impl Overview {
    fn of(record: &Record, live: Option<&Progress>, attached: Vec<AttachedAt>) -> Self {
        let written = live
            .map_or(0, |progress| progress.layers.iter().map(|layer| layer.size.max(layer.written)).sum());
        Overview {
            tenant: record.tenant.clone(),
            ordered_at: record.created_at,
            expires_at: record.expires_at(),
            build: BuildOverview::of(record, live),
            used_bytes: record.content.as_ref().map_or(0, |content| content.totals.size) + written,
            reserved_bytes: record.reserved_gib().saturating_mul(1 << 30),
            attached,
        }
    }
}

impl BuildOverview {
    /// Returns the part of the bytes that was received, or else the part of the layers that is done, percent.
    /// `None` while the build is queued or its plan is not complete.
    pub fn percent(&self) -> Option<u64> {
        let layers = (self.layers_done * 100).checked_div(self.layers).map(|percent| percent as u64);
        match self.fetch_bytes {
            _ if self.attempts == 0 => None,
            Some(0) => layers,
            Some(total) => Some((self.received.saturating_mul(100) / total).min(100)),
            None => None,
        }
    }

    /// Describes how far the build is.
    pub fn describe(&self) -> String {
        let far = match (self.percent(), self) {
            (_, BuildOverview { attempts: 0, .. }) => "queued".to_owned(),
            (Some(percent), _) => format!("{percent}%"),
            (None, BuildOverview { layers, layers_done, .. }) if *layers > 0 => {
                format!("{layers_done}/{layers} layers")
            }
            _ => "planning".to_owned(),
        };
        if self.refreshing { format!("refresh {far}") } else { far }
    }

    fn of(record: &Record, live: Option<&Progress>) -> Option<Self> {
        let work = record.work.as_ref()?;
        let mut build = BuildOverview {
            attempts: work.attempts,
            last_error: work.last_error.clone(),
            refreshing: record.is_refreshing(),
            received: record.progress.iter().map(|image| image.received).sum(),
            // Written for daemons that do not run the build; the images are complete when it is planned.
            fetch_bytes: None,
            layers_done: record.progress.iter().map(|image| image.layers_done).sum(),
            layers: record.progress.iter().map(|image| image.layers).sum(),
        };
        if let Some(progress) = live {
            let images = images(progress);
            build.received = progress.layers.iter().map(|layer| layer.received).sum();
            build.fetch_bytes = progress.fetch_bytes;
            build.layers_done = images.iter().map(|image| image.layers_done).sum();
            build.layers = images.iter().map(|image| image.layers).sum();
        }
        Some(build)
    }
}
