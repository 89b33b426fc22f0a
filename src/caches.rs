//! The image caches of a daemon, from the order to expiry.
//!
//! ```text
//! api ──► service ──► store     records, by compare-and-swap
//!            │
//!            ├──► queue ──► runner ──► larder build (a child process)
//!            ├──► imports              uploaded archives, kept until their volume is sealed
//!            ├──► expiry               retention, failed records, volumes in use
//!            └──► recovery             at start: unfinished builds, unfinished deletions, leftovers
//! ```
//!
//! A cache consists of the stored [`record`], the volume on disk and, during a build, its progress. Progress
//! is kept in memory only; after a restart it is read from the volume.

pub mod attachments;
pub mod error;
pub mod hub;
pub mod imports;
pub mod layout;
pub mod logs;
pub mod matching;
mod measured;
pub mod progress;
pub mod pull_secrets;
pub mod queue;
pub mod record;
pub mod runner;
pub mod service;
pub mod store;
mod turns;
pub mod volumes;
