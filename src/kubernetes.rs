//! Image caches in a cluster. Records are custom resources, the builder is a pod, and the sealed volume is a
//! snapshot.
//!
//! ```text
//! api ──► caches::Service ──► store     ImageCache objects, by resourceVersion
//!              │    ▲    └──► runner    Job, PVC, Secret ──► pod: larder build ──► VolumeSnapshot
//!              │    │    └──► volumes   what exists for a cache, and its deletion: copies before their owner
//!              │    └─────── watch      changes by kubectl and by other daemons
//!              │    └─────── upkeep     scheduled refreshes, last uses, creation on a miss, eviction
//!              └──────────── leader     a Lease: one daemon builds, expires and sweeps; all serve the API
//! ```
//!
//! The core is the same as on a host ([`crate::caches`]): the same service with other implementations behind
//! its traits. Every step is *apply, then observe*: it can be interrupted anywhere, and another daemon can
//! start it again.
//!
//! | where | what |
//! |---|---|
//! | the tenant's namespace | `ImageCache`, and a copy of the snapshot: the VolumeSnapshot `ic-<uid>` |
//! | Larder's namespace | Job, PVC, Secret and the VolumeSnapshot that owns the storage, all `ic-<uid>` |
//! | the cluster | a VolumeSnapshotContent for each copy |
//! | the namespace of volumes (see [`node`]) | another copy, and the claims that nodes restore from it |
//!
//! The second and later volumes of a cache (from refreshes) are named `ic-<uid>-<number>`.

pub mod client;
mod conditions;
pub mod convert;
pub mod copies;
pub mod crd;
pub mod daemon;
mod events;
pub mod fault;
mod history;
mod index;
mod inventory;
pub mod leader;
pub mod lease;
pub mod names;
pub mod node;
pub mod pull_secrets;
pub mod runner;
pub mod snapshot;
pub mod store;
mod upkeep;
pub mod uses;
pub mod volumes;
pub mod watch;
