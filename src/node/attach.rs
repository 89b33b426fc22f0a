//! `larder attach` and `larder detach`: mounts a sealed volume on a node and configures the container
//! runtimes for it.
//!
//! ```text
//! attach   plan: volume ─► private mount ─► cache.json, checks, limits     nothing is changed yet
//!          ─► record ─► mounted at AT ─► image store ─► content cache ─► drop-ins of runtimes
//!          ─► unit ─► images in containerd
//! detach   check for users and dependent images ─► images in containerd ─► drop-ins ─► record marked
//!          ─► content cache ─► image store ─► unmounted ─► unit ─► record removed
//! ```
//!
//! Other parts depend on the record (caches::attachments). The daemon does not remove a volume that has one,
//! and the snapshotter serves its layers. The record is written before the mount, and removed after the
//! unmount. Before the unmount it is marked as leaving. Every step is idempotent. An interrupted command
//! resumes when it runs again, which also happens at each boot.
//!
//! Existing configuration files are never edited. Larder writes separate files
//! ([`node::file`](crate::node::file)), which list all attached volumes and are removed with the last one.

mod containerd;
mod dependents;
mod detach;
mod display;
mod error;
mod installed;
mod offline;
mod own_store;
mod place;
mod ready;
mod runtime_config;
mod unit;
mod verified;

use std::path::{Path, PathBuf};

use chrono::Utc;

pub use dependents::{Consent, Dependent};
pub use detach::{Detached, detach, unmount};
pub use error::Error;

use crate::caches::attachments::{Attachment, Attachments};
use crate::node::containerd::Report;
use crate::node::file::File;
use crate::node::podman::skeleton;
use crate::node::{content_cache, limits, view};
use crate::volume::disk::{self, Entered};
use crate::volume::lease::Lease;
use crate::volume::proofs::Proofs;
use crate::volume::read_trusted;
use larder_model::digest::Digest;
use larder_model::job::LayerFormat;
use larder_model::runtime::{Containerd, Runtime};
use larder_model::seal::{CacheManifest, Content};
use larder_model::trust::Trust;
use larder_sys::{Dir, dm_verity, selinux};
use verified::{Readable, verify_once};

/// A limit of containers/storage: it maps IDs of the directory that contains the layers, without the mounts
/// in it.
const NO_USER_NAMESPACES: &str = "podman and CRI-O cannot start containers in a user namespace (--userns, hostUsers: false) from EROFS \
     images: build the cache with --layer-format overlay if you need this";

/// The node on which volumes are attached.
#[derive(Clone, Debug)]
pub struct Host {
    /// Root of the node's file system as this process sees it: `/`, or a mount in a container.
    pub root: PathBuf,
    /// The attachment records of the node.
    pub records: Attachments,
    /// The recorded results of earlier verifications.
    pub proofs: Proofs,
    /// Socket of the node's snapshotter.
    pub socket: PathBuf,
    /// Data directory of the node's snapshotter.
    pub snapshots: PathBuf,
    /// Directory from which containerd's own EROFS snapshotter takes layers.
    pub content_cache: PathBuf,
}

impl Host {
    /// Returns the path of this process for a path of the node.
    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Updates the content cache to match the records.
    fn link_layers(&self) -> Result<(), Error> {
        Ok(content_cache::update(&self.content_cache, &self.records, dm_verity::is_supported(&self.root))?)
    }
}

/// Parameters of `larder attach`.
#[derive(Clone, Debug)]
pub struct AttachOptions {
    /// Directory of a volume, image file or block device.
    pub volume: PathBuf,
    /// Mount point. If `None`, the current mount point, or else the first free one of `/icv`, `/icv2`, ….
    pub at: Option<PathBuf>,
    /// Required signature of the volume.
    pub trust: Trust,
    /// Required digest of its `cache.json`; `None` accepts any.
    pub digest: Option<Digest>,
    /// `true` to read and verify every layer, and every other file that consumers read, first.
    pub verify_layers: bool,
    /// The runtimes to configure; `None` for all that are installed.
    pub runtimes: Option<Vec<Runtime>>,
    /// The containerd to configure, if it is one of the runtimes.
    pub containerd: Containerd,
    /// `true` to register its images in containerd without a pull.
    pub preload: bool,
    /// The command that attaches it again at each boot; `None` to attach it only now.
    pub boot: Option<Boot>,
}

/// The command line of the systemd unit.
#[derive(Clone, Debug)]
pub struct Boot {
    /// Path of the program on the node.
    pub program: PathBuf,
    /// Flags of `attach`, without the volume and the mount point.
    pub flags: Vec<String>,
    /// Environment variables for the command, as `NAME=value`.
    pub environment: Vec<String>,
}

/// A verified plan to attach a volume. While it exists, the volume is not removed.
#[derive(Debug)]
pub struct Plan {
    host: Host,
    record: Attachment,
    manifest: CacheManifest,
    /// The private mount of the volume; `None` if it is already attached.
    entered: Option<Entered>,
    _lease: Option<Lease>,
    files: Vec<File>,
    preload: bool,
    notes: Vec<String>,
    /// The records of the attached volumes.
    known: Vec<Attachment>,
}

impl Plan {
    /// Reads and checks everything. Changes nothing except the records of verified volumes.
    ///
    /// # Errors
    /// [`Error`]: the volume is not the requested one, or cannot be attached there.
    pub fn make(order: &AttachOptions, host: &Host) -> Result<Self, Error> {
        let known = host.records.list()?;
        let volume = place::resolve(&order.volume)?;
        let at = match &order.at {
            Some(at) => place::check(at)?,
            None => place::choose(&volume, &known)?,
        };
        if let Some(taken) = known.iter().find(|record| record.at == at && record.volume != volume) {
            return Err(Error::Taken { at, volume: taken.volume.clone() });
        }
        let before = known.iter().find(|record| record.at == at);
        let (entered, lease, manifest) = if place::is_mounted(&at)? {
            if before.is_none() {
                return Err(Error::Foreign(at));
            }
            (None, None, read_trusted(&at, &order.trust)?.0)
        } else {
            place::check_empty(&at)?;
            let lease = lease(&volume)?;
            let entered = disk::enter_remembering(&volume, &host.proofs)?;
            let (manifest, _) = read_trusted(entered.path(), &order.trust)?;
            (Some(entered), lease, manifest)
        };
        if let Some(wanted) = order.digest.as_ref().filter(|wanted| **wanted != manifest.digest) {
            return Err(Error::OtherCache { volume, wanted: wanted.clone(), found: manifest.digest });
        }
        if let Some(cache) = before.and_then(|before| before.cache.as_ref())
            && *cache != manifest.digest
        {
            return Err(Error::Changed { volume, was: cache.clone(), is: manifest.digest });
        }
        if order.verify_layers {
            let seen = entered.as_ref().map_or(&*at, |entered| entered.path());
            let readable = Readable { volume: &volume, at: seen, cache: &manifest.digest };
            verify_once(&readable, &order.trust, &host.proofs)?;
        }
        let mut record = Attachment::new(&volume, &at, Utc::now());
        record.cache = Some(manifest.digest.clone());
        record.runtimes = match &order.runtimes {
            Some(runtimes) => runtimes.clone(),
            None => installed::runtimes(host),
        };
        if order.preload && !record.runtimes.contains(&Runtime::Containerd) {
            record.runtimes.push(Runtime::Containerd);
        }
        record.runtimes.sort_unstable();
        record.runtimes.dedup();
        if record.runtimes.contains(&Runtime::Containerd) {
            ready::check(order, &volume, &manifest.content)?;
            record.containerd = Some(order.containerd.clone());
            // Images that are already registered in containerd stay registered.
            record.preloaded = order.preload || before.is_some_and(|before| before.preloaded);
        }
        let is_for = |runtime| record.runtimes.contains(&runtime);
        let stores = is_for(Runtime::Podman) || is_for(Runtime::Crio);
        record.direct = stores && manifest.content.layer_format == LayerFormat::Overlay;
        // A volume of directories is already an image store, but builds find its layers only in a view.
        if stores && (!record.direct || is_for(Runtime::Podman)) {
            record.store = Some(place::store(&at));
        }
        if let Some(store) = record.image_stores().next().filter(|_| stores) {
            limits::check(&manifest.content, store)?;
            view::check(entered.as_ref().map_or(&*at, |entered| entered.path()), &manifest.content)?;
        }
        if let Some(store) = &record.store
            && !view::is_there(store)?
        {
            place::check_empty(store)?;
        }
        let mut attached: Vec<Attachment> =
            known.iter().filter(|other| other.at != at && !other.leaving).cloned().collect();
        attached.push(record.clone());
        let runtimes = runtime_config::all(host, &attached)?;
        let mut notes = runtimes.advice;
        if content_cache::has(&record) {
            notes.extend(ready::notes(host, &manifest.content));
        }
        if stores && !record.direct {
            notes.push(NO_USER_NAMESPACES.to_owned());
        }
        if record.runtimes.is_empty() {
            notes.push("no container runtime found on this node: specify one with --runtime".to_owned());
        }
        if selinux::is_enforcing() && entered.as_ref().is_some_and(|entered| entered.path() == volume) {
            notes.push(format!(
                "SELinux is enforcing, and files of a directory keep their own labels: containers can read them if they are \
                 container_ro_file_t (chcon -R -t container_ro_file_t {})",
                volume.display()
            ));
        }
        let mut files = runtimes.files;
        if let Some(boot) = &order.boot {
            files.push(unit::file(host, &record, boot)?);
        }
        let (host, preload) = (host.clone(), order.preload);
        Ok(Plan { host, record, manifest, entered, _lease: lease, files, preload, notes, known })
    }

    /// Returns the content of the volume.
    pub fn content(&self) -> &Content {
        &self.manifest.content
    }

    /// Returns the digest of its `cache.json`.
    pub fn cache(&self) -> &Digest {
        &self.manifest.digest
    }

    /// Returns the path of the volume, without symbolic links.
    pub fn volume(&self) -> &Path {
        &self.record.volume
    }

    /// Returns the mount point of the volume.
    pub fn at(&self) -> &Path {
        &self.record.at
    }

    /// Returns hints for the operator, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Executes the plan. Returns the report of the images registered in containerd, if any.
    ///
    /// # Errors
    /// [`Error`]. A volume that was not attached before then has neither a record nor a mount.
    pub fn carry_out(mut self) -> Result<Option<Report>, Error> {
        let entered = self.entered.take();
        self.steps(entered).inspect_err(|_| {
            if !self.known.iter().any(|record| record.at == self.record.at)
                && let Err(error) = self.undo()
            {
                tracing::warn!(%error, at = %self.record.at.display(), "cannot clean up after a failed attach: run larder detach");
            }
        })
    }

    fn steps(&self, entered: Option<Entered>) -> Result<Option<Report>, Error> {
        self.host.records.note(&self.record)?;
        let at = &self.record.at;
        if let Some(entered) = entered {
            place::make(at)?;
            if self.record.direct {
                skeleton::make(at)?;
            }
            entered.leave(at)?;
        }
        if let Some(store) = &self.record.store
            && !view::is_there(store)?
        {
            place::make(store)?;
            skeleton::make(store)?;
            view::make(at, &self.manifest.content, store)?;
        }
        self.host.link_layers()?;
        for file in &self.files {
            file.write()?;
        }
        match &self.record.containerd {
            Some(containerd) if self.preload => {
                let preload = async |containerd: &crate::node::containerd::Client| {
                    containerd.preload(&self.record.at, &self.manifest).await
                };
                Ok(Some(crate::node::containerd::block_on(containerd, preload)?))
            }
            _ => Ok(None),
        }
    }

    /// Undoes the steps of a failed plan. The volume has no users yet.
    fn undo(&self) -> Result<(), Error> {
        if let Some(containerd) = self.record.containerd.as_ref().filter(|_| self.preload) {
            // A containerd that cannot be reached has no records of the volume.
            let _ = crate::node::containerd::block_on(containerd, async |containerd| {
                containerd.forget(&self.manifest.digest).await
            });
        }
        let restored = self.restore_runtimes();
        detach::take_down(&self.record, false)?;
        self.host.records.forget(&self.record.at)?;
        self.host.link_layers()?;
        restored
    }

    /// Restores the configuration of the runtimes and systemd.
    fn restore_runtimes(&self) -> Result<(), Error> {
        for file in runtime_config::all(&self.host, &self.known)?.files {
            file.write()?;
        }
        Ok(unit::gone(&self.host, &self.record.at).write()?)
    }
}

/// Prevents the daemon from removing a volume before it has a record. Open disks are protected already. A
/// volume that is read-only, or from another host, is not removed by a daemon.
fn lease(volume: &Path) -> Result<Option<Lease>, Error> {
    let Ok(root) = Dir::open(volume) else { return Ok(None) };
    match Lease::shared(&root) {
        Ok(None) => Err(Error::Going(volume.to_owned())),
        Ok(lease) => Ok(lease),
        Err(_) => Ok(None),
    }
}
