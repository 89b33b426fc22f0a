//! Classes of errors. The class alone determines retries, the exit code and the HTTP status.

use serde::{Deserialize, Serialize};

/// The class of an error. Every error type of Larder has a method `class()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// The request, a flag, a file of Larder or a reference is malformed or requests something unsupported.
    Invalid,
    /// The image, tag or platform does not exist.
    NotFound,
    /// The volume belongs to another job or an unknown owner.
    Conflict,
    /// A registry or the kernel denies access.
    Denied,
    /// The content does not fit: 3x rule, size limit, blocks or inodes.
    NoSpace,
    /// A registry or the network failed, and a later attempt might succeed.
    Transient,
    /// Something prevents the work for now: a held lock, a passed deadline, a requested checkpoint.
    Busy,
    /// The content is corrupt or hostile.
    Corrupt,
    /// The user or a supervisor interrupted the work.
    Cancelled,
    /// An internal error of Larder.
    Internal,
}

impl Class {
    /// All classes of errors.
    pub const ALL: [Class; 10] = [
        Class::Invalid,
        Class::NotFound,
        Class::Conflict,
        Class::Denied,
        Class::NoSpace,
        Class::Transient,
        Class::Busy,
        Class::Corrupt,
        Class::Cancelled,
        Class::Internal,
    ];

    /// Returns the word for the class in events, logs and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Class::Invalid => "invalid",
            Class::NotFound => "not_found",
            Class::Conflict => "conflict",
            Class::Denied => "denied",
            Class::NoSpace => "no_space",
            Class::Transient => "transient",
            Class::Busy => "busy",
            Class::Corrupt => "corrupt",
            Class::Cancelled => "cancelled",
            Class::Internal => "internal",
        }
    }

    /// Returns the process exit code after sysexits.h (`man 3head sysexits`), which is part of the builder's
    /// contract.
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

    /// Returns the class that determines the exit code: a permanent failure wins over one that a retry can
    /// fix; ties go to the first.
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
            // A cancelled layer is usually a consequence of another failure, so it counts only if it is the
            // only one.
            Class::Cancelled => 7,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_is_that_of_the_events() {
        for class in Class::ALL {
            assert_eq!(serde_json::to_value(class).unwrap(), class.word());
        }
    }

    #[test]
    fn a_permanent_failure_is_decisive() {
        let all = [Class::Cancelled, Class::Transient, Class::Corrupt, Class::Busy];
        assert_eq!(Class::decisive(all), Some(Class::Corrupt));
        assert_eq!(Class::decisive([Class::Cancelled, Class::Transient]), Some(Class::Transient));
        assert_eq!(Class::decisive([]), None);
    }
}
