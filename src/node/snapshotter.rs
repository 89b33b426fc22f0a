//! `larder snapshotter`: a snapshotter for containerd (a proxy plugin of type `snapshot`), and all that a node needs of one.
//!
//! A layer that an attached volume has is never fetched: containerd asks for a place to unpack it, names it by its chain
//! ID, and is told that it exists already. Everything else is kept as containerd's own overlay snapshotter would.
//!
//! ```text
//! containerd ──gRPC──► service ──► Snapshotter ──► store    records (SQLite)
//!                                      │    ├────► links    what overlays stand on, under short names
//!                                      │    └────► volumes  the attached ones, by the records of caches::attachments
//!                                      └─────────► usage
//!
//! ROOT/lock               held for the life of the process
//! ROOT/snapshots.db       records, with its -wal
//! ROOT/snapshots/N/fs     the files of snapshot N; none where they lie on a volume
//! ROOT/snapshots/N/work   what overlayfs wants beside an upper directory
//! ROOT/l/N                what overlays of its children stand on: a symbolic link to its fs or to the tree on a volume, or
//! ROOT/l/N.0, N.1         directories over which the EROFS images of the layer are mounted, topmost first
//! ROOT/l/N.from           a symbolic link to nowhere, which says of which volume
//! ROOT/m/N/0, …           what snapshot N stands on, where its container is in a user namespace
//! ```
//!
//! The names in `l/` are short and have one parent, because overlayfs takes all lower directories in one page of options
//! and containerd leaves out what their paths begin with in common: 120 layers take 500 bytes, wherever volumes are mounted.
//!
//! # Volumes come and go
//!
//! A volume is attached when its record is there and a sealed volume lies where the record says. Records are looked at
//! whenever a layer is asked for and every [`EVERY`]. When a record is gone, or says that the volume leaves, links are taken back and images unmounted, so
//! that the volume can be unmounted; who detaches marks the record first and then unmounts, again while it is busy. What
//! runs keeps what it stands on: overlays hold the file systems below them, and images the files in which they lie, so that
//! a volume of images is busy until the last container of it has ended. What would start, and what would be unpacked on such
//! a layer, is refused with `UNAVAILABLE` until the volume, or another one with the same layers, is attached again, or until
//! the images that have it are removed: containerd keeps names of its own for snapshots, and nothing here can take them back.
//!
//! # What is believed
//!
//! The callers (the socket is root's), the records of attachments and what lies in ROOT. Of a volume, which is a file from
//! elsewhere, nothing is: `cache.json` must hold its own digest, and each chain ID must be that of its parent and diff ID;
//! paths on it are opened without following links. That the trees are what their chain IDs say is proven by `larder verify`.
//!
//! # Crashes
//!
//! A snapshot is there when its row is: directories are made before, and removed after. What has no row is swept at the
//! start and by `Cleanup`. Numbers are not given twice while the process lives. Rows are flushed before they are answered;
//! files are when the kernel does so, as with containerd's own snapshotter.

mod error;
mod filter;
mod links;
mod lookup;
mod mapping;
mod operations;
mod server;
mod service;
mod socket;
mod store;
mod sweep;
mod usage;
mod volumes;

pub use error::Error;
pub use server::{Server, StartError};

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicI64;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};

use larder_sys::lock::Lock;
use links::Links;
use store::Store;
use volumes::Volumes;

/// How often the records of attachments are looked at.
pub const EVERY: Duration = Duration::from_secs(2);

/// The label by which callers see that the files of a snapshot lie on a volume; its value is [`YES`].
pub const ON_VOLUME: &str = "larder.dev/on-volume";
/// See [`ON_VOLUME`].
pub const YES: &str = "yes";

/// Where it answers, unless it is told otherwise.
pub const SOCKET: &str = "/run/larder-snapshotter/snapshotter.sock";

/// Where a snapshotter keeps what, and what it looks at.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its own directory, on a file system that overlayfs takes upper directories from.
    pub root: PathBuf,
    /// Records of attachments ([`Layout::attached`](crate::caches::layout::Layout::attached)).
    pub attached: PathBuf,
    /// Where containerd reaches it.
    pub socket: PathBuf,
}

/// What a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    View,
    Active,
    Committed,
}

/// What callers see of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Info {
    name: String,
    /// Empty without one.
    parent: String,
    kind: Kind,
    created: DateTime<Utc>,
    updated: DateTime<Utc>,
    labels: Labels,
}

type Labels = BTreeMap<String, String>;

/// How a snapshot is to be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    kind: &'static str,
    source: String,
    options: Vec<String>,
}

/// What a snapshot takes on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Usage {
    /// Bytes.
    size: u64,
    inodes: u64,
}

/// All of it but the socket. Blocks.
#[derive(Debug)]
struct Snapshotter {
    root: PathBuf,
    links: Links,
    /// Options that every overlay has.
    overlay: Vec<String>,
    store: Mutex<Store>,
    volumes: Mutex<Volumes>,
    /// The number of the next snapshot.
    next: AtomicI64,
    _lock: Lock,
}

/// A panic of another caller leaves a transaction that was rolled back, and lists that are read anew.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
