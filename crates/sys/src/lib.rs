//! The only place with system calls.
//!
//! Everything works on directory descriptors and single names, so that no path is ever resolved twice and nothing
//! outside a directory that was opened on purpose can be reached. Names are bytes: Linux knows no encoding.

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
pub mod unnamed;
pub mod walk;
pub mod xattr;

pub use dir::Dir;
pub use stat::{FileType, Stat, Timestamp};
