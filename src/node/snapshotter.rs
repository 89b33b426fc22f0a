//! `larder snapshotter`: a containerd snapshotter (a proxy plugin of type `snapshot`) that can be the only
//! one of a node.
//!
//! A layer of an attached volume is never fetched. containerd asks for a directory to unpack it, with the
//! chain ID of the layer, and the snapshotter answers that the layer already exists. All other snapshots are
//! stored as in containerd's own overlay snapshotter.
//!
//! ```text
//! containerd ──gRPC──► service ──► Snapshotter ──► store    records (SQLite)
//!                                      │    ├────► links    the lower directories of overlays, under short names
//!                                      │    └────► volumes  the attached volumes, by the records of caches::attachments
//!                                      └─────────► usage
//!
//! ROOT/lock               held for the life of the process
//! ROOT/snapshots.db       records, with its -wal
//! ROOT/snapshots/N/fs     the files of snapshot N; missing if they are on a volume
//! ROOT/snapshots/N/work   the work directory that overlayfs needs next to an upper directory
//! ROOT/l/N                lower directory for its children: a symbolic link to its fs or to the tree on a volume, or
//! ROOT/l/N.0, N.1         mount points of the layer's EROFS images, topmost first
//! ROOT/l/N.from           a dangling symbolic link that identifies the volume
//! ROOT/m/N/0, …           the lower directories of snapshot N, if its container is in a user namespace
//! ```
//!
//! The names in `l/` are short and in one directory. overlayfs takes all lower directories in one page of
//! options, and containerd removes their common prefix. So 120 layers take 500 bytes, wherever volumes are
//! mounted.
//!
//! # Attaching and detaching volumes
//!
//! A volume is attached if it has a record, and its sealed content is at the mount point in the record. The
//! records are read at every request for a layer, and every [`POLL_INTERVAL`]. When a record is removed or
//! marked as leaving, links are removed and images unmounted, so that the volume can be unmounted.
//! `larder detach` marks the record first and then unmounts, with retries while the volume is busy.
//!
//! Running containers keep their lower layers: an overlay keeps the file systems below it, and an image keeps
//! its file open. So a volume of images is busy until its last container has ended. Starting a container or
//! unpacking a layer on top of a missing layer fails with `UNAVAILABLE`. This lasts until a volume with the
//! layer is attached again, or the images with it are removed. The snapshotter cannot revoke its snapshots,
//! because containerd has its own names for them.
//!
//! # Trust
//!
//! Callers are trusted (only root can use the socket), and so are the attachment records and the files in
//! ROOT. A volume is not trusted, because it can come from elsewhere: `cache.json` must contain its own
//! digest, each chain ID must match its parent and diff ID, and paths are opened without following links.
//! `larder verify` checks that the content of the trees matches the chain IDs.
//!
//! # Crashes
//!
//! A snapshot exists while it has a row: its directories are created before the row, and removed after it.
//! Files without a row are removed at the start and by `Cleanup`. Numbers are not reused while the process
//! runs. Rows are flushed before a response is sent. Files are flushed by the kernel, as with containerd's
//! own snapshotter.

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

/// Interval at which the attachment records are read.
pub const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// The label of snapshots whose files are on a volume. Its value is [`YES`].
pub const ON_VOLUME: &str = "larder.dev/on-volume";
/// The value of the label [`ON_VOLUME`].
pub const YES: &str = "yes";

/// The default path of the socket.
pub const SOCKET: &str = "/run/larder-snapshotter/snapshotter.sock";

/// The paths of a snapshotter.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The data directory, on a file system that supports overlayfs upper directories.
    pub root: PathBuf,
    /// Directory of the attachment records ([`Layout::attached`](crate::caches::layout::Layout::attached)).
    pub attached: PathBuf,
    /// Path of the socket for containerd.
    pub socket: PathBuf,
}

/// The kind of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    View,
    Active,
    Committed,
}

/// The public properties of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Info {
    name: String,
    /// Name of the parent. Empty if there is none.
    parent: String,
    kind: Kind,
    created: DateTime<Utc>,
    updated: DateTime<Utc>,
    labels: Labels,
}

type Labels = BTreeMap<String, String>;

/// The mount of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    kind: &'static str,
    source: String,
    options: Vec<String>,
}

/// The disk usage of a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Usage {
    /// Allocated size, bytes.
    size: u64,
    inodes: u64,
}

/// The snapshotter without its socket. All methods block.
#[derive(Debug)]
struct Snapshotter {
    root: PathBuf,
    links: Links,
    /// Options of every overlay mount.
    overlay: Vec<String>,
    store: Mutex<Store>,
    volumes: Mutex<Volumes>,
    /// The number of the next snapshot.
    next: AtomicI64,
    _lock: Lock,
}

/// Locks a mutex. A panic of another caller is harmless: its transaction was rolled back, and lists are read
/// again.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
