//! Starts a snapshotter, and removes the leftovers of crashes.

use std::collections::BTreeSet;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

use super::links::Links;
use super::operations::overlay_supports;
use super::store::{self, Store};
use super::volumes::Volumes;
use super::{Error, Settings, Snapshotter, lock};
use larder_model::io_error::Context as _;
use larder_sys::Dir;
use larder_sys::lock::Lock;
use larder_sys::mount::OVERLAY_OPTIONS;

/// Returns the options of every overlay, as far as this kernel supports them. Like containerd, this uses
/// `index=off`, because the layers of an upper directory can later have other inodes. The other options
/// prevent layers from referencing files elsewhere.
fn overlay_options() -> Vec<String> {
    let name = |option: &str| option.split('=').next().is_some_and(overlay_supports);
    let options = ["index=off"].into_iter().chain(OVERLAY_OPTIONS);
    options.filter(|option| name(option)).map(str::to_owned).collect()
}

impl Snapshotter {
    /// Locks the directory, creates missing entries, and removes leftovers.
    pub(super) fn open(settings: &Settings) -> Result<Self, Error> {
        let root = &settings.root;
        DirBuilder::new().recursive(true).mode(0o700).create(root).context("creating", root.display())?;
        let root = root.canonicalize().context("opening", root.display())?;
        // These characters are separators in paths, lists and options of overlays.
        let shown = root.to_str().filter(|path| !path.contains([':', ',', '\\', '"']));
        if shown.is_none() {
            return Err(Error::Invalid(format!(
                "{}: overlayfs needs a UTF-8 path without colon, comma, quote and backslash",
                root.display()
            )));
        }
        let dir = Dir::open(&root).context("opening", root.display())?;
        let held = Lock::try_exclusive(&dir, b"lock").context("locking", root.display())?;
        let Some(held) = held else {
            return Err(Error::Precondition(format!("another snapshotter uses {}", root.display())));
        };
        for name in ["snapshots", "l"] {
            dir.ensure_dir(name.as_bytes(), 0o700).context("creating", root.join(name).display())?;
        }
        let store = Store::open(&root.join("snapshots.db"))?;
        let snapshotter = Snapshotter {
            links: Links::open(root.join("l"))?,
            overlay: overlay_options(),
            store: Mutex::new(store),
            volumes: Mutex::new(Volumes::new(settings.attached.clone())),
            next: AtomicI64::new(1),
            root,
            _lock: held,
        };
        let highest = snapshotter.orphans()?.1;
        snapshotter.next.store(highest + 1, Ordering::Relaxed);
        snapshotter.cleanup()?;
        Ok(snapshotter)
    }

    /// Returns a number that no snapshot has had since the start.
    pub(super) fn next_id(&self) -> i64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Removes files without a row.
    pub(super) fn cleanup(&self) -> Result<(), Error> {
        for id in self.orphans()?.0 {
            tracing::info!(snapshot = id, "removing the leftovers of a snapshot");
            self.discard(id);
        }
        Ok(())
    }

    /// Returns the numbers without a row, and the highest number in use.
    fn orphans(&self) -> Result<(BTreeSet<i64>, i64), Error> {
        // Rows and directories are created under this lock.
        let store = lock(&self.store);
        let rows: BTreeSet<i64> = store::all(store.read())?.into_iter().map(|record| record.id).collect();
        let path = self.root.join("snapshots");
        let names = Dir::open(&path).and_then(|dir| dir.names()).context("listing", path.display())?;
        let directories = names.iter().filter_map(|name| std::str::from_utf8(name).ok()?.parse().ok());
        let found = directories.chain(self.links.owners()?).chain(self.lower_mount_owners()?);
        let found: BTreeSet<i64> = found.collect();
        let highest = rows.iter().chain(&found).max().copied().unwrap_or(0);
        Ok((found.difference(&rows).copied().collect(), highest))
    }
}
