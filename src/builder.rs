//! The builder: it combines registry, layers and volume into plan, admission and pipeline.
//!
//! ```text
//! order ──► resolve ──► admit ──► pipeline ──────────────────────► seal ──► outcome
//!           references   3x rule   extraction (a task and a thread
//!           → manifests            a layer) → commit in chain order
//! ```

mod acquire;
pub mod bench;
mod blocking;
pub mod cancel;
mod commit;
pub mod events;
mod extraction;
mod flushing;
mod layers;
mod opening;
pub mod order;
pub mod outcome;
mod pipeline;
mod prepare;
mod publish;
pub mod registry;
pub mod remote;
mod resolve;
mod run;
pub mod share;
mod source;
pub mod supervisor;
mod sweep;
mod unsynced;
pub mod volume_name;
pub mod wire;

pub use run::{Prepared, run};
pub use sweep::sweep;

#[cfg(test)]
mod tests;
