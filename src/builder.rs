//! The builder: it combines registry, layers and volume into plan, admission and pipeline.
//!
//! ```text
//! order ──► resolve ──► admit ──► pipeline ──────────────────────► seal ──► outcome
//!           references   3x rule   extraction (a task and a thread
//!           → manifests            a layer) → commit in chain order
//! ```

mod acquire;
pub mod bench;
pub mod cancel;
mod commit;
pub mod events;
mod extraction;
mod flushing;
pub mod keeper;
mod layers;
pub mod order;
pub mod outcome;
mod pipeline;
pub mod progress;
mod publish;
pub mod registry;
pub mod remote;
mod resolve;
mod run;
pub mod share;
mod source;
mod sweep;
mod unsynced;
pub mod wire;

pub use run::{Prepared, run};
pub use sweep::sweep;

#[cfg(test)]
mod tests;
