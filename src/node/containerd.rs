//! Images of caches in containerd, without a registry; and how containerd is told of the snapshotter.
//!
//! An image is known to containerd when there are a record with its name, its documents in the content store and snapshots of
//! its layers. The snapshots are the snapshotter's, which has the layers of attached volumes by their chain IDs; records and
//! documents are written here, as a pull would have written them, under a lease:
//!
//! ```text
//! image record  app:1, app@sha256:…, sha256:<config>      labels: made by us of which cache; CRI's; pinned
//!    └► index ─m.0► manifest ─config► config ─snapshot► top layer ► … ► base layer      (labels containerd.io/gc.ref.…)
//! ```
//!
//! so that garbage collection keeps them for as long as a record is there. CRI knows an image by its tag, its digests and the
//! digest of its config; that is why there are several records.
//!
//! # Whose records are whose
//!
//! A record of ours has a label for each cache of which it was made. One that somebody else made is left alone: where it is of
//! another image, the image of the cache is not known by that name, and the report says so. Whoever pulls a name anew makes
//! the record his own: containerd writes its labels anew then. [`Client::forget`] removes the records that are of one cache
//! alone, and the label of it from those that are of several.
//!
//! # Crashes
//!
//! Every step can be repeated. What a process that died had written and not named is kept by its lease for [`LEASE`], and
//! collected then.
//!
//! | module | what it is for |
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

pub use dependents::{Going, Needing};
pub use error::Error;
pub use records::{Outcome, Record, Report};
pub use usage::User;

use std::ops::Deref;
use std::time::Duration;

use larder_model::runtime::Containerd;

/// For how long what was written and not named yet is kept.
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

/// Runs `work` with a client of `containerd` to its end, for callers without a runtime.
///
/// # Errors
/// Those of `work`, and [`Error::Runtime`].
pub fn block_on<T>(
    containerd: &Containerd,
    work: impl AsyncFnOnce(&Client) -> Result<T, Error>,
) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Error::Runtime)?.block_on(work(&Client::new(containerd.clone())))
}
