//! The status of an image cache, as a tenant sees it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One of the five statuses that the vendor's API defines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Status {
    /// The cache is queued or being built.
    Creating,
    /// The cache is ready for use.
    Available,
    /// The build failed; the message gives the reason.
    Failed,
    /// The cache expired, or its volume is missing; the message gives the reason.
    Unavailable,
    /// The cache is being deleted, or is deleted after its last user releases it.
    Deleting,
}

impl Status {
    /// All statuses, in the order of a cache's life.
    pub const ALL: [Status; 5] =
        [Status::Creating, Status::Available, Status::Failed, Status::Unavailable, Status::Deleting];
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::Creating => "Creating",
            Status::Available => "Available",
            Status::Failed => "Failed",
            Status::Unavailable => "Unavailable",
            Status::Deleting => "Deleting",
        })
    }
}
