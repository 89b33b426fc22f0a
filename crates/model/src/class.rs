//! What kind of failure an error is. Retry, exit code and (later) HTTP status are decided from the class alone.

use serde::{Deserialize, Serialize};

/// The class of an error; every error type of the crate answers `class()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// The request, a flag, a file of ours or a reference is malformed or asks for what is not supported.
    Invalid,
    /// No such image, tag or platform.
    NotFound,
    /// The volume belongs to another job, or to nobody we know.
    Conflict,
    /// A registry or the kernel refuses the rights that we have.
    Denied,
    /// It does not fit: 3x rule, cap, blocks or inodes.
    NoSpace,
    /// A registry or the way to it failed in a manner that a later try may heal.
    Transient,
    /// Something here is in the way for now: lock held, deadline passed, checkpoint asked for.
    Busy,
    /// Content is corrupt or hostile.
    Corrupt,
    /// A person or a supervisor interrupted the work.
    Cancelled,
    /// A fault of ours.
    Internal,
}

impl Class {
    /// Process exit code after sysexits.h (`man 3head sysexits`), the contract of the builder.
    pub fn exit_code(self) -> u8 {
        match self {
            Class::Invalid | Class::NotFound => 64,
            Class::Corrupt => 65,
            Class::Transient => 69,
            Class::Internal => 70,
            Class::NoSpace | Class::Conflict => 73,
            Class::Busy => 75,
            Class::Denied => 77,
            Class::Cancelled => 130,
        }
    }

    /// Of several failures the one that a retry cannot heal decides; ties go to the first.
    pub fn decisive(classes: impl IntoIterator<Item = Class>) -> Option<Class> {
        classes.into_iter().min_by_key(|class| class.rank())
    }

    fn rank(self) -> u8 {
        match self {
            Class::Corrupt => 0,
            Class::Invalid | Class::NotFound => 1,
            Class::Denied => 2,
            Class::NoSpace | Class::Conflict => 3,
            Class::Internal => 4,
            Class::Transient => 5,
            Class::Busy => 6,
            // A cancelled layer is a consequence of another failure unless it stands alone.
            Class::Cancelled => 7,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_retry_cannot_heal_decides() {
        let all = [Class::Cancelled, Class::Transient, Class::Corrupt, Class::Busy];
        assert_eq!(Class::decisive(all), Some(Class::Corrupt));
        assert_eq!(Class::decisive([Class::Cancelled, Class::Transient]), Some(Class::Transient));
        assert_eq!(Class::decisive([]), None);
    }
}
