//! Registers images of caches in containerd without a registry, and configures containerd for the
//! snapshotter.
//!
//! containerd has an image if there is a record with its name, its documents in the content store, and
//! snapshots of its layers. The snapshotter provides the snapshots: it has the layers of attached volumes by
//! their chain IDs. This module writes the records and documents under a lease, as a pull writes them:
//!
//! ```text
//! image record  app:1, app@sha256:…, sha256:<config>      labels: the caches it was made from; CRI's; pinned
//!    └► index ─m.0► manifest ─config► config ─snapshot► top layer ► … ► base layer      (labels containerd.io/gc.ref.…)
//! ```
//!
//! Garbage collection keeps the documents while a record exists. CRI finds an image by its tag, its digests
//! and the digest of its config, so there are several records.
//!
//! # Ownership of records
//!
//! A record that Larder made has a label for each cache it was made from. Records of other clients are left
//! alone. If such a record is for another image, the cache's image is not registered under that name, and the
//! report says so. When another client pulls the name again, containerd replaces the labels, so the record
//! then belongs to that client. [`Client::forget`] removes the records of a single cache, and only the label
//! from records of several caches.
//!
//! # Crashes
//!
//! Every step is idempotent. Documents that a crashed process wrote without a record are kept by its lease
//! for [`LEASE`], and then collected.
//!
//! | module | purpose |
//! |---|---|
//! | [`config`] | the drop-in file that makes containerd use the snapshotter |

pub mod config;

mod call;
mod dependents;
mod documents;
mod error;
mod forget;
mod preload;
mod records;
mod usage;
mod user;

pub use dependents::{DependentImage, LostSnapshots};
pub use error::Error;
pub use records::{Outcome, Record, Report};
pub use user::User;

use std::ops::Deref;
use std::time::Duration;

use larder_model::runtime::Containerd;

/// Duration of a lease, which protects written documents until they have a record.
pub const LEASE: Duration = Duration::from_secs(3600);

/// A client of one containerd.
#[derive(Clone, Debug)]
pub struct Client(Containerd);

impl Deref for Client {
    type Target = Containerd;

    fn deref(&self) -> &Containerd {
        &self.0
    }
}

impl Client {
    /// Returns a client that connects when it is first used.
    pub fn new(containerd: Containerd) -> Self {
        Client(containerd)
    }
}

/// Runs `work` to completion with a client of `containerd`, for callers without an async runtime.
///
/// # Errors
/// Returns the errors of `work`, and [`Error::Runtime`].
pub fn block_on<T>(
    containerd: &Containerd,
    work: impl AsyncFnOnce(&Client) -> Result<T, Error>,
) -> Result<T, Error> {
    let runtime = crate::blocking::current_thread();
    runtime.map_err(Error::Runtime)?.block_on(work(&Client::new(containerd.clone())))
}
