//! Detaches a volume from a node.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{fs, io};

use super::containerd::ContainerdUse;
use super::dependents::{Consent, listed};
use super::error::Error;
use super::{Host, installed, own_store, place, runtime_config, unit};
use crate::caches::attachments::Attachment;
use crate::node::containerd::config;
use crate::node::podman::skeleton;
use crate::node::{snapshot_users, snapshotter, view};
use crate::volume::seal;
use larder_model::escape::escape;
use larder_model::io_error::Context as _;
use larder_model::runtime::Runtime;
use larder_sys::mount;
use larder_sys::mounts::Mounts;

/// Maximum time a mount can stay busy. The snapshotter reads the records every
/// [`snapshotter::POLL_INTERVAL`], and then unmounts its mounts of a volume whose record is gone.
const PATIENCE: Duration = Duration::from_secs(3 * snapshotter::POLL_INTERVAL.as_secs());

/// A volume that was detached.
#[derive(Debug)]
pub struct Detached {
    /// The former mount point of the volume.
    pub at: PathBuf,
    /// Hints for the operator, one sentence each.
    pub notes: Vec<String>,
}

/// Detaches a volume, which is given by its own path or by its mount point.
///
/// # Errors
/// [`Error`]. If containers use it, or images need it without `consent`, nothing is changed. A call after an
/// interruption resumes.
pub fn detach(wanted: &Path, host: &Host, consent: Consent) -> Result<Detached, Error> {
    let known = host.records.list()?;
    let record = find(wanted, &known)?;
    let at = &record.at;
    let mounts = Mounts::read().context("looking for users of", at.display())?;
    let store = record.store.as_deref();
    if let Some(overlay) =
        [Some(at.as_path()), store].into_iter().flatten().find_map(|path| mounts.overlay_on(path))
    {
        let by = format!("the overlay at {} uses it", overlay.display());
        return Err(Error::Busy { at: at.clone(), by });
    }
    let others: Vec<Attachment> =
        known.iter().filter(|other| other.at != *at && !other.leaving).cloned().collect();
    let agreed = own_store::check(record, &others, host, consent.remove_images)?;
    if record.containerd.is_none() {
        refuse_if_used(record, &others, host)?;
    }
    let containerd_use = ContainerdUse::find(record, &others, host, consent)?;
    let images = containerd_use.images();
    if !images.is_empty() && !consent.remove_images {
        return Err(Error::Needed { at: at.clone(), images });
    }
    if let Some(agreed) = agreed {
        agreed.remove()?;
    }
    containerd_use.release()?;
    let mut notes = Vec::new();
    if !images.is_empty() {
        notes.push(format!("removed, to be pulled again when needed: {}", listed(&images)));
    }
    for file in runtime_config::all(host, &others)?.files {
        if file.path == host.path(config::PATH) && file.differs()? {
            notes.push(
                "containerd uses its old configuration until it is restarted: systemctl restart containerd"
                    .to_owned(),
            );
        }
        file.write()?;
    }
    let mut leaving = record.clone();
    leaving.leaving = true;
    host.records.note(&leaving)?;
    let has_it_open = record.runtimes.contains(&Runtime::Crio) && installed::may_run(host, "crio");
    if has_it_open {
        notes.push(format!(
            "CRI-O reads its list of stores at startup, and uses an empty store at {} until then: systemctl restart crio",
            at.display()
        ));
    }
    if let Err(error) = host.link_layers().and_then(|()| take_down(record, has_it_open)) {
        // The volume stays attached, so the runtimes' configuration is restored.
        host.records.note(record)?;
        host.link_layers()?;
        for file in runtime_config::all(host, &known)?.files {
            file.write()?;
        }
        return Err(error);
    }
    unit::gone(host, at).write()?;
    host.records.forget(at)?;
    Ok(Detached { at: at.clone(), notes })
}

/// Fails if a snapshot uses the volume. The snapshotter has the layers of every attached volume, so if it
/// runs, it reports the snapshots that use them. The kernel would not refuse the unmount, because an overlay
/// keeps the file systems below it. The owner of the disk could then remove it from under containers.
fn refuse_if_used(record: &Attachment, others: &[Attachment], host: &Host) -> Result<(), Error> {
    let Ok(sealed) = seal::read(&record.at) else { return Ok(()) };
    if !host.socket.exists() {
        return Ok(());
    }
    let busy = |by: String| Error::Busy { at: record.at.clone(), by };
    let others: Vec<snapshot_users::Other> =
        others.iter().filter_map(|other| Some((seal::read(&other.at).ok()?.content, other.since))).collect();
    match snapshot_users::first(&host.socket, &sealed.content, &others) {
        Ok(None) => Ok(()),
        Ok(Some(snapshot)) => Err(busy(format!("the snapshot {} uses it", escape(&snapshot)))),
        Err(error) => Err(busy(format!("possibly, because its users cannot be determined ({error})"))),
    }
}

fn find<'a>(wanted: &Path, known: &'a [Attachment]) -> Result<&'a Attachment, Error> {
    let path = std::path::absolute(wanted).context("resolving", wanted.display())?;
    let resolved = path.canonicalize().unwrap_or_else(|_| path.clone());
    if let Some(record) = known.iter().find(|record| record.at == path || record.at == resolved) {
        return Ok(record);
    }
    let is_it = |record: &&Attachment| record.volume == path || record.volume == resolved;
    let found: Vec<&Attachment> = known.iter().filter(is_it).collect();
    let places = |records: &[&Attachment]| {
        let places: Vec<String> = records.iter().map(|record| record.at.display().to_string()).collect();
        if places.is_empty() { "none".to_owned() } else { places.join(", ") }
    };
    match found.as_slice() {
        [] => {
            let have = places(&known.iter().collect::<Vec<_>>());
            Err(Error::NotAttached { given: wanted.to_owned(), have })
        }
        [record] => Ok(record),
        several => Err(Error::Several { given: wanted.to_owned(), at: places(several) }),
    }
}

/// Unmounts the store and the volume, and removes their mount points. With `keep_empty`, an empty image store
/// stays there, because a CRI-O whose configured store is missing fails in every call.
pub(super) fn take_down(record: &Attachment, keep_empty: bool) -> Result<(), Error> {
    if let Some(store) = &record.store {
        view::remove(store)?;
    }
    unmount(&record.at)?;
    let places = [Some(&record.at), record.store.as_ref()].into_iter().flatten();
    for place in places.filter(|_| !keep_empty) {
        skeleton::remove(place)?;
        // A directory that is not empty was not created by attach.
        let _ = fs::remove_dir(place);
    }
    Ok(())
}

/// Unmounts the volume at `at`: a disk, or the view of a directory. Does nothing if nothing is mounted there.
///
/// # Errors
/// [`Error::Busy`] if it stays in use.
pub fn unmount(at: &Path) -> Result<(), Error> {
    let end = Instant::now() + PATIENCE;
    while place::is_mounted(at)? {
        let busy = match take_off(at)? {
            None => return Ok(()),
            Some(busy) => busy,
        };
        if Instant::now() >= end {
            return Err(Error::Busy { at: at.to_owned(), by: busy });
        }
        sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Unmounts the file system at `at`, or returns a description of its user.
fn take_off(at: &Path) -> Result<Option<String>, Error> {
    if view::is_there(at)? {
        return match view::remove(at) {
            Err(view::Error::Busy { who, .. }) => Ok(Some(who)),
            other => Ok(other.map(|()| None)?),
        };
    }
    match mount::unmount(at) {
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {
            Ok(Some("a container uses one of its images, or a process has one of its files open".to_owned()))
        }
        other => Ok(other.map(|()| None).context("unmounting", at.display())?),
    }
}
