//! The operations of the snapshotter. They follow containerd's package snapshots and its overlay snapshotter.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use chrono::Utc;
use rusqlite::Connection;

use super::filter::Filters;
use super::mapping::Mapping;
use super::store::{self, Record};
use super::{Error, Info, Kind, Labels, Mount, Snapshotter, Usage, lock, usage};
use larder_model::io_error::Context as _;
use larder_sys::dir::{set_mode, set_owner};
use larder_sys::{Dir, remove};

/// Maximum size of a label, key and value together, bytes (containerd, package labels).
const MAX_LABEL: usize = 4096;
/// Maximum length of a name, bytes.
const MAX_NAME: usize = 4096;

/// The fields that an update changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Replace all labels.
    Labels,
    /// Replace one label. An empty value removes it.
    Label(String),
}

impl Snapshotter {
    /// Returns the properties of a snapshot.
    pub(super) fn stat(&self, name: &str) -> Result<Info, Error> {
        Ok(store::get(lock(&self.store).read(), name)?.into_info())
    }

    /// Returns all snapshots that match the filters.
    pub(super) fn list(&self, filters: &Filters) -> Result<Vec<Info>, Error> {
        let all = store::all(lock(&self.store).read())?;
        Ok(all.into_iter().map(Record::into_info).filter(|info| filters.pass(info)).collect())
    }

    /// Updates the labels of a snapshot.
    pub(super) fn update(&self, name: &str, labels: &Labels, changes: &[Change]) -> Result<Info, Error> {
        check_labels(labels)?;
        lock(&self.store).write(|db| {
            let mut record = store::get(db, name)?;
            for change in changes {
                match change {
                    Change::Labels => record.info.labels = labels.clone(),
                    Change::Label(key) => {
                        let value = labels.get(key).cloned().unwrap_or_default();
                        record.info.labels.insert(key.clone(), value);
                    }
                }
            }
            record.info.labels.retain(|_, value| !value.is_empty());
            record.info.updated = Utc::now();
            store::replace(db, &record)?;
            Ok(record.into_info())
        })
    }

    /// Returns the disk usage of a snapshot without its parents. A layer on a volume uses no space.
    pub(super) fn usage(&self, name: &str) -> Result<Usage, Error> {
        let record = store::get(lock(&self.store).read(), name)?;
        match record.info.kind {
            Kind::Active => usage::of(&self.files(record.id)),
            Kind::View | Kind::Committed => Ok(record.usage),
        }
    }

    /// Returns the mounts of an active snapshot or a view.
    pub(super) fn mounts(&self, name: &str) -> Result<Vec<Mount>, Error> {
        lock(&self.volumes).refresh();
        let store = lock(&self.store);
        let record = store::get(store.read(), name)?;
        if record.info.kind == Kind::Committed {
            return Err(Error::Precondition(format!(
                "snapshot {name:?} is committed, so it cannot be mounted"
            )));
        }
        let lower = self.lower(store.read(), name)?;
        let mapping = Mapping::of(&record.info.labels)?;
        self.describe(record.id, record.info.kind, lower, mapping.as_ref())
    }

    /// Creates an active snapshot or a view on top of a committed one.
    pub(super) fn prepare(
        &self,
        kind: Kind,
        name: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>, Error> {
        check_name(name)?;
        check_labels(&labels)?;
        lock(&self.volumes).refresh();
        if kind == Kind::Active
            && let Some(layer) = self.provide_layer(name, parent, &labels)?
        {
            return Err(Error::Exists(format!("layer {layer}")));
        }
        let mapping = Mapping::of(&labels)?;
        let (id, now) = (self.next_id(), Utc::now());
        let labels = labels.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        let info = Info {
            name: name.to_owned(),
            parent: parent.to_owned(),
            kind,
            created: now,
            updated: now,
            labels,
        };
        let record = Record { id, info, chain: None, usage: Usage::default() };
        let prepared = lock(&self.store).write(|db| {
            let above = parent_of(db, parent)?;
            store::insert(db, &record, above.map(|above| above.id))?;
            let lower = self.lower(db, name)?;
            self.make(id, kind, lower.first(), mapping.as_ref())?;
            self.describe(id, kind, lower, mapping.as_ref())
        });
        if prepared.is_err() {
            self.discard(id);
        }
        prepared
    }

    /// Commits an active snapshot, under another name.
    pub(super) fn commit(&self, name: &str, key: &str, labels: Labels) -> Result<(), Error> {
        check_name(name)?;
        check_labels(&labels)?;
        let active = |db: &Connection| {
            let record = store::get(db, key)?;
            match record.info.kind {
                Kind::Active => Ok(record),
                _ => Err(Error::Precondition(format!("snapshot {key:?} is not active"))),
            }
        };
        let id = active(lock(&self.store).read())?.id;
        // Counting takes time, so it does not hold the lock.
        let usage = usage::of(&self.files(id))?;
        lock(&self.store).write(|db| {
            if store::find(db, name)?.is_some() {
                return Err(Error::Exists(format!("snapshot {name:?}")));
            }
            let mut record = active(db)?;
            let now = Utc::now();
            let labels = labels.into_iter().filter(|(_, value)| !value.is_empty()).collect();
            record.info = Info {
                name: name.to_owned(),
                kind: Kind::Committed,
                created: now,
                updated: now,
                labels,
                ..record.info
            };
            record.usage = usage;
            store::replace(db, &record)
        })
    }

    /// Removes a snapshot without children, and its files.
    pub(super) fn remove(&self, name: &str) -> Result<(), Error> {
        let id = lock(&self.store).write(|db| {
            let record = store::get(db, name)?;
            if store::has_children(db, record.id)? {
                return Err(Error::Precondition(format!("cannot remove snapshot {name:?}: it has children")));
            }
            store::remove(db, record.id)?;
            Ok(record.id)
        })?;
        self.discard(id);
        Ok(())
    }

    /// Returns the lower directories of a snapshot, topmost first.
    fn lower(&self, db: &Connection, name: &str) -> Result<Vec<PathBuf>, Error> {
        let mut lower = Vec::new();
        for record in store::ancestors(db, name)? {
            lower.extend(self.lower_dirs(&record)?);
        }
        Ok(lower)
    }

    /// Returns the mounts of a snapshot on top of `lower`.
    fn describe(
        &self,
        id: i64,
        kind: Kind,
        lower: Vec<PathBuf>,
        mapping: Option<&Mapping>,
    ) -> Result<Vec<Mount>, Error> {
        let lower = if mapping.is_some() { self.mount_lower(id, &lower)? } else { lower };
        let mapped: Vec<String> = mapping.into_iter().flat_map(Mapping::options).collect();
        let shown = |path: &Path| path.display().to_string();
        let bind = |source: String, access: &str| Mount {
            kind: "bind",
            source,
            options: mapped.iter().cloned().chain([access.to_owned(), "rbind".to_owned()]).collect(),
        };
        let mount = match (kind, lower.as_slice()) {
            (Kind::View, []) => bind(shown(&self.files(id)), "ro"),
            (Kind::View, [one]) => bind(shown(one), "ro"),
            (_, []) => bind(shown(&self.files(id)), "rw"),
            (_, lower) => {
                let mut options = [&mapped[..], &self.overlay].concat();
                if kind == Kind::Active {
                    options.push(format!("workdir={}", shown(&self.directory(id).join("work"))));
                    options.push(format!("upperdir={}", shown(&self.files(id))));
                }
                let lower: Vec<String> = lower.iter().map(|path| shown(path)).collect();
                options.push(format!("lowerdir={}", lower.join(":")));
                Mount { kind: "overlay", source: "overlay".to_owned(), options }
            }
        };
        Ok(vec![mount])
    }

    /// Creates the directories of a snapshot. Its root directory gets the mode and owner of the directory
    /// below. With a `mapping`, the owner is the container's root.
    fn make(
        &self,
        id: i64,
        kind: Kind,
        below: Option<&PathBuf>,
        mapping: Option<&Mapping>,
    ) -> Result<(), Error> {
        let directory = self.directory(id);
        let files = self.files(id);
        let make = || {
            DirBuilder::new().mode(0o700).create(&directory)?;
            DirBuilder::new().mode(0o755).create(&files)?;
            let top = Dir::open(&files)?;
            let like = below.map(|below| Dir::open(below)?.stat_self()).transpose()?;
            let owner = mapping.map(|mapping| mapping.root).or(like.map(|like| (like.uid, like.gid)));
            if let Some((uid, gid)) = owner {
                set_owner(&top, uid, gid)?;
            }
            // The mode must not depend on the umask.
            set_mode(&top, like.map_or(0o755, |like| like.mode))?;
            if kind == Kind::Active {
                DirBuilder::new().mode(0o711).create(directory.join("work"))?;
            }
            Ok::<_, io::Error>(())
        };
        Ok(make().context("creating", directory.display())?)
    }

    /// Removes the files of a snapshot without a row. On an error, the rest is left to the cleanup.
    pub(super) fn discard(&self, id: i64) {
        let gone = self.unmount_lower(id).and_then(|()| self.links.release(id)).and_then(|()| {
            let snapshots = self.root.join("snapshots");
            let remove = || remove::tree(&Dir::open(&snapshots)?, id.to_string().as_bytes());
            Ok(remove().context("removing", self.directory(id).display())?)
        });
        if let Err(error) = gone {
            tracing::warn!(snapshot = id, %error, "cannot remove the files of a snapshot; the next cleanup retries");
        }
    }

    fn directory(&self, id: i64) -> PathBuf {
        self.root.join("snapshots").join(id.to_string())
    }

    fn files(&self, id: i64) -> PathBuf {
        self.directory(id).join("fs")
    }
}

/// Returns the parent of a new snapshot. `None` if the name is empty.
pub(super) fn parent_of(db: &Connection, name: &str) -> Result<Option<Record>, Error> {
    if name.is_empty() {
        return Ok(None);
    }
    let record = store::get(db, name)?;
    match record.info.kind {
        Kind::Committed => Ok(Some(record)),
        _ => Err(Error::Invalid(format!("the parent {name:?} is not committed"))),
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    match name.len() {
        1..=MAX_NAME => Ok(()),
        have => Err(Error::Invalid(format!("a name must have 1 to {MAX_NAME} bytes, not {have}"))),
    }
}

fn check_labels(labels: &Labels) -> Result<(), Error> {
    match labels.iter().find(|(key, value)| key.len() + value.len() > MAX_LABEL) {
        None => Ok(()),
        Some((key, value)) => {
            let (have, key) = (key.len() + value.len(), key.chars().take(64).collect::<String>());
            Err(Error::Invalid(format!("label {key:?} has {have} bytes, the maximum is {MAX_LABEL}")))
        }
    }
}

/// Reports whether the kernel's overlayfs supports an option.
pub(super) fn overlay_supports(option: &str) -> bool {
    fs::exists(format!("/sys/module/overlay/parameters/{option}")).unwrap_or(false)
}
