//! Shortages of space or inodes on a volume.

use std::fmt;

use super::size::ByteSize;

/// The amounts that are needed and available. Every message about a shortage uses its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Unit of the three amounts.
    pub unit: Unit,
    /// Amount that was requested, in `unit`.
    pub need: u64,
    /// Amount that is left, in `unit`.
    pub have: u64,
    /// Total amount on the volume, in `unit`.
    pub cap: u64,
}

/// A resource that can run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Space, counted in bytes.
    Bytes,
    /// Inodes: one for each file, directory and link.
    Inodes,
}

impl Shortage {
    /// Creates a shortage of space, with all amounts in bytes.
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
                    "it needs {need} more, but only {have} of the volume's {cap} are left: use a larger --size"
                )
            }
            Unit::Inodes => write!(
                f,
                "it needs {need} more inodes, but only {have} of the volume's {cap} inodes are left: use a larger --size"
            ),
        }
    }
}
