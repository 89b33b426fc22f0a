//! `larder attach` and `larder detach`: a sealed volume on a node, and what starts containers there told of it.
//!
//! ```text
//! attach   plan: volume ─► opened where nobody sees it ─► cache.json, checks, limits     nothing is changed yet
//!          ─► record ─► mounted at AT ─► image store ─► content cache ─► drop-ins of runtimes ─► unit ─► images in containerd
//! detach   asked who uses it, and which images need it ─► images in containerd ─► drop-ins ─► record marked ─► content cache
//!          ─► image store ─► unmounted ─► unit ─► record gone
//! ```
//!
//! The record (caches::attachments) is what others go by: the daemon does not remove a volume that has one, and the
//! snapshotter serves the layers of the volumes that have one. It is written before the mount, and goes after the unmount; that
//! the volume leaves is noted in it before.
//! Every step may be repeated, so that what was cut off goes on when the same command runs again, as it does at each boot.
//!
//! Configuration of others is never edited. What is written are whole files of ours ([`node::file`](crate::node::file)), which
//! name all attached volumes and go with the last.

mod at_rest;
mod containerd;
mod dependents;
mod detach;
mod display;
mod error;
mod found;
mod own_store;
mod place;
mod prove;
mod ready;
mod told;
mod unit;

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
use prove::{Readable, prove};

/// What containers/storage cannot do with a view: it maps IDs of the directory that has the layers, without the mounts in it.
const NO_USER_NAMESPACES: &str = "podman and CRI-O start no container in a user namespace (--userns, hostUsers: false) from EROFS \
     images: build the cache with --layer-format overlay if you need that";

/// The node.
#[derive(Clone, Debug)]
pub struct Host {
    /// Where its file system is for this process: `/`, or where a container has it.
    pub root: PathBuf,
    /// Its records.
    pub records: Attachments,
    /// What was proven of volumes on it.
    pub proofs: Proofs,
    /// Where its snapshotter answers.
    pub socket: PathBuf,
    /// Where its snapshotter keeps what.
    pub snapshots: PathBuf,
    /// From where containerd's own EROFS snapshotter takes layers.
    pub content_cache: PathBuf,
}

impl Host {
    /// Where a path of the node is for this process.
    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Makes the content cache what the records say.
    fn link_layers(&self) -> Result<(), Error> {
        Ok(content_cache::update(&self.content_cache, &self.records, dm_verity::is_supported(&self.root))?)
    }
}

/// What is to be attached, and how.
#[derive(Clone, Debug)]
pub struct Order {
    /// Directory of a volume, image file or block device.
    pub volume: PathBuf,
    /// Where it is mounted; none: where it is already, or at the first free of `/icv`, `/icv2`, ….
    pub at: Option<PathBuf>,
    /// Whose signature it has to bear.
    pub trust: Trust,
    /// The digest that its `cache.json` has to have; `None` for any.
    pub digest: Option<Digest>,
    /// Whether every layer, and every other file that consumers read, is read and proven first.
    pub verify_layers: bool,
    /// Which runtimes are told of it; none: those that are found.
    pub runtimes: Option<Vec<Runtime>>,
    /// Which containerd is meant, where that is told of it.
    pub containerd: Containerd,
    /// Whether its images are to be known to containerd without a pull.
    pub preload: bool,
    /// How it is attached again at each boot; none: not at all.
    pub boot: Option<Boot>,
}

/// The command that a unit runs.
#[derive(Clone, Debug)]
pub struct Boot {
    /// The program, as the node has it.
    pub program: PathBuf,
    /// Flags of `attach`, but what is attached and where.
    pub flags: Vec<String>,
    /// Variables that it goes by, `NAME=value`.
    pub environment: Vec<String>,
}

/// What is going to be done. As long as it lives, the volume is there.
#[derive(Debug)]
pub struct Plan {
    host: Host,
    record: Attachment,
    manifest: CacheManifest,
    /// The volume where nobody sees it; none where it is mounted already.
    entered: Option<Entered>,
    _lease: Option<Lease>,
    files: Vec<File>,
    preload: bool,
    notes: Vec<String>,
    /// The records of what is attached already.
    known: Vec<Attachment>,
}

impl Plan {
    /// Reads and checks everything, and changes nothing but the records of what was proven.
    ///
    /// # Errors
    /// [`Error`]: the volume is not what was asked for, or cannot be attached there.
    pub fn make(order: &Order, host: &Host) -> Result<Self, Error> {
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
            prove(&readable, &order.trust, &host.proofs)?;
        }
        let mut record = Attachment::new(&volume, &at, Utc::now());
        record.cache = Some(manifest.digest.clone());
        record.runtimes = match &order.runtimes {
            Some(runtimes) => runtimes.clone(),
            None => found::runtimes(host),
        };
        if order.preload && !record.runtimes.contains(&Runtime::Containerd) {
            record.runtimes.push(Runtime::Containerd);
        }
        record.runtimes.sort_unstable();
        record.runtimes.dedup();
        if record.runtimes.contains(&Runtime::Containerd) {
            ready::check(order, &volume, &manifest.content)?;
            record.containerd = Some(order.containerd.clone());
            // What containerd knows already it keeps knowing.
            record.preloaded = order.preload || before.is_some_and(|before| before.preloaded);
        }
        let is_for = |runtime| record.runtimes.contains(&runtime);
        let stores = is_for(Runtime::Podman) || is_for(Runtime::Crio);
        record.direct = stores && manifest.content.layer_format == LayerFormat::Overlay;
        // Directories are a store as they are, but builds find their layers in a view alone.
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
        let told = told::all(host, &attached)?;
        let mut notes = told.advice;
        if content_cache::has(&record) {
            notes.extend(ready::notes(host, &manifest.content));
        }
        if stores && !record.direct {
            notes.push(NO_USER_NAMESPACES.to_owned());
        }
        if record.runtimes.is_empty() {
            notes.push("no container runtime was found on this node: name one with --runtime".to_owned());
        }
        if selinux::is_enforcing() && entered.as_ref().is_some_and(|entered| entered.path() == volume) {
            notes.push(format!(
                "SELinux enforces, and files of a directory keep their own labels: containers read them if they are \
                 container_ro_file_t (chcon -R -t container_ro_file_t {})",
                volume.display()
            ));
        }
        let mut files = told.files;
        if let Some(boot) = &order.boot {
            files.push(unit::file(host, &record, boot)?);
        }
        let (host, preload) = (host.clone(), order.preload);
        Ok(Plan { host, record, manifest, entered, _lease: lease, files, preload, notes, known })
    }

    /// What the volume holds.
    pub fn content(&self) -> &Content {
        &self.manifest.content
    }

    /// Digest of its `cache.json`.
    pub fn cache(&self) -> &Digest {
        &self.manifest.digest
    }

    /// Where it is going to be.
    pub fn at(&self) -> &Path {
        &self.record.at
    }

    /// What the operator should know, a sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Carries the plan out, and returns what containerd was told of images, if anything.
    ///
    /// # Errors
    /// [`Error`]; a volume that was not attached before leaves neither record nor mount then.
    pub fn carry_out(mut self) -> Result<Option<Report>, Error> {
        let entered = self.entered.take();
        self.steps(entered).inspect_err(|_| {
            if !self.known.iter().any(|record| record.at == self.record.at)
                && let Err(error) = self.undo()
            {
                tracing::warn!(%error, at = %self.record.at.display(), "a failed attach left something: larder detach removes it");
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

    /// Takes back what was done of a plan that failed: nobody uses the volume yet.
    fn undo(&self) -> Result<(), Error> {
        if let Some(containerd) = self.record.containerd.as_ref().filter(|_| self.preload) {
            // One that cannot be reached was told nothing.
            let _ = crate::node::containerd::block_on(containerd, async |containerd| {
                containerd.forget(&self.manifest.digest).await
            });
        }
        let told = self.untell();
        detach::take_down(&self.record, false)?;
        self.host.records.forget(&self.record.at)?;
        self.host.link_layers()?;
        told
    }

    /// Takes back what runtimes and systemd were told.
    fn untell(&self) -> Result<(), Error> {
        for file in told::all(&self.host, &self.known)?.files {
            file.write()?;
        }
        Ok(unit::gone(&self.host, &self.record.at).write()?)
    }
}

/// Keeps the daemon from removing a volume until it has a record. Disks do so while they are open; a volume that cannot be
/// written to, or that was carried here, is nobody's to remove.
fn lease(volume: &Path) -> Result<Option<Lease>, Error> {
    let Ok(root) = Dir::open(volume) else { return Ok(None) };
    match Lease::shared(&root) {
        Ok(None) => Err(Error::Going(volume.to_owned())),
        Ok(lease) => Ok(lease),
        Err(_) => Ok(None),
    }
}
