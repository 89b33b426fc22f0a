//! What does not fit on a volume.

use std::fmt;

use super::size::ByteSize;

/// Need and have, in the words of every message about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// What is counted.
    pub unit: Unit,
    /// Asked for.
    pub need: u64,
    /// Left.
    pub have: u64,
    /// What the volume has in all.
    pub cap: u64,
}

/// What can run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Room, in bytes.
    Bytes,
    /// Inodes: one for each file, directory and link.
    Inodes,
}

impl Shortage {
    /// A shortage of room.
    pub fn bytes(need: u64, have: u64, cap: u64) -> Self {
        Shortage { unit: Unit::Bytes, need, have, cap }
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shortage { unit, need, have, cap } = *self;
        match unit {
            Unit::Bytes => {
                let (need, have, cap) = (ByteSize(need), ByteSize(have), ByteSize(cap));
                write!(
                    f,
                    "it needs {need} more, {have} of the volume's {cap} are left: ask for a larger --size"
                )
            }
            Unit::Inodes => write!(
                f,
                "it needs {need} more inodes, {have} of the volume's {cap} inodes are left: ask for a larger --size"
            ),
        }
    }
}
