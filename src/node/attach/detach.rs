//! Detaching a volume.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::containerd::Held;
use super::dependents::{Consent, listed};
use super::error::{Error, io as failed};
use super::{Host, found, own_store, place, told, unit};
use crate::caches::attachments::Attachment;
use crate::node::containerd::config;
use crate::node::podman::skeleton;
use crate::node::{snapshotter, standing, view};
use crate::volume::seal;
use larder_model::escape::escape;
use larder_model::runtime::Runtime;
use larder_sys::mount;
use larder_sys::mounts::Mounts;

/// How long a mount may stay busy: the snapshotter looks at the records every [`snapshotter::EVERY`], and unmounts what it
/// has of a volume that lost its own.
const PATIENCE: Duration = Duration::from_secs(3 * snapshotter::EVERY.as_secs());

/// A volume that is detached.
#[derive(Debug)]
pub struct Detached {
    /// Where it was.
    pub at: PathBuf,
    /// What the operator should know, a sentence each.
    pub notes: Vec<String>,
}

/// Detaches a volume, which is named by its own path or by where it is attached.
///
/// # Errors
/// [`Error`]; while containers use it, or images need it without `consent`, nothing is changed. What was cut off goes on when it
/// is called again.
pub fn detach(wanted: &Path, host: &Host, consent: Consent) -> Result<Detached, Error> {
    let known = host.records.list()?;
    let record = find(wanted, &known)?;
    let at = &record.at;
    let mounts = Mounts::read().map_err(failed("looking for who uses", at))?;
    let store = record.store.as_deref();
    if let Some(overlay) =
        [Some(at.as_path()), store].into_iter().flatten().find_map(|path| mounts.overlay_on(path))
    {
        let by = format!("the overlay at {} stands on it", overlay.display());
        return Err(Error::Busy { at: at.clone(), by });
    }
    let others: Vec<Attachment> =
        known.iter().filter(|other| other.at != *at && !other.leaving).cloned().collect();
    let agreed = own_store::check(record, &others, host, consent.remove_images)?;
    if record.containerd.is_none() {
        refuse_if_stood_on(record, &others, host)?;
    }
    let held = Held::find(record, &others, host, consent)?;
    let images = held.images();
    if !images.is_empty() && !consent.remove_images {
        return Err(Error::Needed { at: at.clone(), images });
    }
    if let Some(agreed) = agreed {
        agreed.remove()?;
    }
    held.let_go()?;
    let mut notes = Vec::new();
    if !images.is_empty() {
        notes.push(format!("removed, and pulled again when they are needed: {}", listed(&images)));
    }
    for file in told::all(host, &others)?.files {
        if file.path == host.path(config::PATH) && file.differs()? {
            notes.push(
                "containerd is configured for the volume until it is restarted: systemctl restart containerd"
                    .to_owned(),
            );
        }
        file.write()?;
    }
    let mut leaving = record.clone();
    leaving.leaving = true;
    host.records.note(&leaving)?;
    let has_it_open = record.runtimes.contains(&Runtime::Crio) && found::may_run(host, "crio");
    if has_it_open {
        notes.push(format!(
            "CRI-O reads its stores when it starts, and finds an empty one at {} until then: systemctl restart crio",
            at.display()
        ));
    }
    if let Err(error) = host.link_layers().and_then(|()| take_down(record, has_it_open)) {
        // It is attached still, and runtimes are told so.
        host.records.note(record)?;
        host.link_layers()?;
        for file in told::all(host, &known)?.files {
            file.write()?;
        }
        return Err(error);
    }
    unit::gone(host, at).write()?;
    host.records.forget(at)?;
    Ok(Detached { at: at.clone(), notes })
}

/// The snapshotter has the layers of every attached volume, whoever was told of that: where there is one, it says what stands
/// on them. An overlay holds the file systems below it, so the kernel would let the mount go, and whoever owns the disk would
/// take it from under containers.
fn refuse_if_stood_on(record: &Attachment, others: &[Attachment], host: &Host) -> Result<(), Error> {
    let Ok(sealed) = seal::read(&record.at) else { return Ok(()) };
    if !host.socket.exists() {
        return Ok(());
    }
    let busy = |by: String| Error::Busy { at: record.at.clone(), by };
    let others: Vec<standing::Other> =
        others.iter().filter_map(|other| Some((seal::read(&other.at).ok()?.content, other.since))).collect();
    match standing::first(&host.socket, &sealed.content, &others) {
        Ok(None) => Ok(()),
        Ok(Some(snapshot)) => Err(busy(format!("the snapshot {} stands on it", escape(&snapshot)))),
        Err(error) => Err(busy(format!("or may be: {error}"))),
    }
}

fn find<'a>(wanted: &Path, known: &'a [Attachment]) -> Result<&'a Attachment, Error> {
    let path = std::path::absolute(wanted).map_err(failed("resolving", wanted))?;
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

/// Unmounts the store and the volume, and removes what they were mounted over. With `keep_empty` an empty image store stays there: a
/// CRI-O that is told of a store and finds nothing fails in every call.
pub(super) fn take_down(record: &Attachment, keep_empty: bool) -> Result<(), Error> {
    if let Some(store) = &record.store {
        view::remove(store)?;
    }
    unmount(&record.at)?;
    let places = [Some(&record.at), record.store.as_ref()].into_iter().flatten();
    for place in places.filter(|_| !keep_empty) {
        skeleton::remove(place)?;
        // One that holds something was not made for this.
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

/// Unmounts what is at `at`, or returns who uses it.
fn take_off(at: &Path) -> Result<Option<String>, Error> {
    if view::is_there(at)? {
        return match view::remove(at) {
            Err(view::Error::Busy { who, .. }) => Ok(Some(who)),
            other => Ok(other.map(|()| None)?),
        };
    }
    match mount::unmount(at) {
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {
            Ok(Some("a container stands on an image of it, or a process has a file of it open".to_owned()))
        }
        other => other.map(|()| None).map_err(failed("unmounting", at)),
    }
}
