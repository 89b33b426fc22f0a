//! System calls of Larder. All `unsafe` code of the project is here, in `larder-isal` and in
//! `larder-sha256`.
//!
//! Functions take directory descriptors and single names. No path is resolved twice, and nothing outside a
//! deliberately opened directory can be reached. Names are bytes, because Linux does not define an encoding
//! for them.

pub mod advice;
pub mod atomic;
pub mod cgroup;
pub mod clock;
pub mod confine;
pub mod dir;
pub mod dm_verity;
pub mod extents;
pub mod interfaces;
pub mod lock;
pub mod loop_device;
pub mod mount;
pub mod mounts;
pub mod private;
pub mod privilege;
pub mod process;
pub mod release;
pub mod remove;
pub mod selinux;
pub mod signal;
pub mod socket;
pub mod space;
pub mod stat;
pub mod trim;
pub mod unnamed;
pub mod walk;
pub mod xattr;

pub use dir::Dir;
pub use stat::{FileType, Stat, Timestamp};
