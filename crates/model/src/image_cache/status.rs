//! What a tenant is told about an image cache.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The vendor's five statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Status {
    /// It is queued or being built.
    Creating,
    /// It can be used.
    Available,
    /// It could not be built; the message says why.
    Failed,
    /// It was there and cannot be used any more: expired, or found to be damaged. The message says which.
    Unavailable,
    /// It is on its way out, or waits for who still uses it.
    Deleting,
}

impl Status {
    /// All of them.
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
