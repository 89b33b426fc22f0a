//! Attaches volumes for the node agent, like `larder attach`: the record, the mount and the configuration of
//! the runtimes.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::caches::attachments::Attachment;
use crate::kubernetes::node::attacher::is_name;
use crate::kubernetes::node::{AttachFault, Attacher};
use crate::node::attach::{self, AttachOptions, Consent, Host, Plan};
use crate::volume::seal;
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::runtime::{Containerd, Runtime};
use larder_model::trust::Trust;
use larder_sys::mount::{self, is_mount_point};
use larder_sys::{Dir, mounts};

/// Attaches volumes below the directory `mounts`.
#[derive(Debug)]
pub(super) struct NodeAttacher {
    pub(super) host: Host,
    /// The directory as a canonical path, because records have canonical paths.
    pub(super) mounts: PathBuf,
    pub(super) runtimes: Vec<Runtime>,
    pub(super) preload: bool,
    pub(super) trust: Trust,
    pub(super) verify_layers: bool,
}

impl NodeAttacher {
    /// Returns the record of the mount point `at`.
    fn record(&self, at: &Path) -> Result<Option<Attachment>, AttachFault> {
        let known = self.host.records.list().map_err(|e| fault(e.class(), &e))?;
        Ok(known.into_iter().find(|record| record.at == at))
    }
}

impl Attacher for NodeAttacher {
    fn attach(&self, volume: &Path, name: &str, seal: &Digest) -> Result<(), AttachFault> {
        let at = self.mounts.join(name);
        let is = |path: &Path| seal::read(path).map(|manifest| manifest.digest);
        let known = self.record(&at)?;
        if let Some(record) = &known
            && is_mounted(&at)
            && is(&at).is_ok_and(|found| found == *seal)
        {
            // An earlier process ended while it detached the volume.
            if record.leaving {
                let mut stays = record.clone();
                stays.leaving = false;
                self.host.records.note(&stays).map_err(|e| fault(e.class(), &e))?;
            }
            return Ok(());
        }
        let found = is(volume).map_err(|e| fault(e.class(), &e))?;
        if found != *seal {
            let reason = format!("the volume contains the cache {found}, but its image cache is {seal}");
            return Err(AttachFault { class: Class::Corrupt, reason });
        }
        // The volume lost its disk, or was attached from a pod before a reboot.
        if known.is_some() || is_mounted(&at) {
            self.detach(name)?;
        }
        let order = AttachOptions {
            volume: volume.to_owned(),
            at: Some(at),
            trust: self.trust.clone(),
            digest: Some(seal.clone()),
            verify_layers: self.verify_layers,
            runtimes: Some(self.runtimes.clone()),
            containerd: Containerd::default(),
            preload: self.preload,
            // The agent itself attaches it after the next boot.
            boot: None,
        };
        let plan = Plan::make(&order, &self.host).map_err(|e| fault(e.class(), &e))?;
        if !self.runtimes.is_empty() {
            plan.notes().iter().for_each(|note| tracing::warn!("{note}"));
        }
        if let Some(report) = plan.carry_out().map_err(|e| fault(e.class(), &e))? {
            tracing::info!(name, "registered in containerd: {report}");
        }
        Ok(())
    }

    fn detach(&self, name: &str) -> Result<(), AttachFault> {
        let at = self.mounts.join(name);
        if self.record(&at)?.is_some() {
            // No user can confirm this. Images that need the volume are pulled again when a pod needs them.
            let consent = Consent { remove_images: true, ..Consent::default() };
            let detached = attach::detach(&at, &self.host, consent).map_err(|e| fault(e.class(), &e))?;
            detached.notes.iter().for_each(|note| tracing::info!(name, "{note}"));
        }
        // A crash can leave a mount without a record.
        if is_mounted(&at) {
            attach::unmount(&at).map_err(|e| fault(e.class(), &e))?;
        }
        forget_copies(&at)
            .map_err(|e| fault(Class::Internal, &format!("unmounting copies of {}: {e}", at.display())))?;
        match fs::remove_dir(&at) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(fault(Class::Internal, &format!("removing the directory {}: {e}", at.display())))
            }
            _ => Ok(()),
        }
    }

    fn attached(&self) -> Result<Vec<String>, AttachFault> {
        let known = self.host.records.list().map_err(|e| fault(e.class(), &e))?;
        let records = known.into_iter().filter(|record| record.at.parent() == Some(&self.mounts));
        let mut names: Vec<String> = records.filter_map(|record| own(record.at.file_name())).collect();
        let listed =
            |e: io::Error| fault(Class::Internal, &format!("listing {}: {e}", self.mounts.display()));
        for entry in fs::read_dir(&self.mounts).map_err(listed)? {
            names.extend(own(Some(&entry.map_err(listed)?.file_name())));
        }
        names.sort();
        names.dedup();
        Ok(names)
    }
}

fn own(name: Option<&std::ffi::OsStr>) -> Option<String> {
    name?.to_str().filter(|name| is_name(name)).map(str::to_owned)
}

/// Unmounts the copies of the mount at `at` from the mount namespace of this agent. An agent that starts
/// while a volume is attached has one: its pod mounts the directory of containerd, which contains the root of
/// its own container. A copy keeps the disk in use, and prevents the removal of the directory `at`.
fn forget_copies(at: &Path) -> io::Result<()> {
    let Some(tasks) = Path::new(Containerd::ADDRESS).parent() else { return Ok(()) };
    let copies = mounts::copies_below(tasks, at)?;
    if copies.is_empty() {
        return Ok(());
    }
    // The directory is a mount of this pod, so this unmounts nothing on the node.
    mount::make_private(tasks)?;
    copies.iter().try_for_each(|copy| mount::unmount_tree(copy))
}

/// Reports whether a volume is mounted at `at`. A disk that was removed returns errors, but is still mounted.
fn is_mounted(at: &Path) -> bool {
    match Dir::open(at) {
        Ok(dir) => is_mount_point(&dir).unwrap_or(true),
        Err(e) => e.kind() != io::ErrorKind::NotFound,
    }
}

fn fault(class: Class, reason: &impl ToString) -> AttachFault {
    AttachFault { class, reason: reason.to_string() }
}
