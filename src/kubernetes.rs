//! Image caches in a cluster: the records are custom resources, the builder is a pod, the sealed volume is a snapshot.
//!
//! ```text
//! api ──► caches::Service ──► store     ImageCache objects, by resourceVersion
//!              │    ▲    └──► runner    Job, PVC, Secret ──► pod: larder build ──► VolumeSnapshot
//!              │    │    └──► volumes   what there is of a cache, and how it goes: copies before their owner
//!              │    └─────── watch      what kubectl and other daemons did
//!              │    └─────── upkeep     refreshes by schedule, last uses, image caches on a miss, deletion of unused ones
//!              └──────────── leader     a Lease: one daemon builds, expires and sweeps; all answer
//! ```
//!
//! The core is the one of a host ([`crate::caches`]): the same service over other parts. Every step is *apply, then
//! observe*: it may be broken off anywhere and begun again by another daemon.
//!
//! | where | what |
//! |---|---|
//! | the tenant's namespace | `ImageCache`, and a VolumeSnapshot `ic-<uid>` that is a copy |
//! | Larder's namespace | Job, PVC, Secret and the VolumeSnapshot that owns, all `ic-<uid>` |
//! | the cluster | a VolumeSnapshotContent for each copy |
//!
//! | the namespace of volumes, if there are agents on nodes ([`node`]) | another copy, and what each node makes of it |
//!
//! The second volume of a cache and those after it (refresh) are `ic-<uid>-<number>`.

pub mod client;
mod conditions;
pub mod convert;
pub mod copies;
pub mod crd;
pub mod daemon;
mod events;
pub mod fault;
mod history;
mod inventory;
pub mod leader;
pub mod lease;
pub mod names;
pub mod node;
pub mod pull_secrets;
pub mod runner;
mod seen;
pub mod snapshot;
pub mod store;
mod upkeep;
pub mod uses;
pub mod volumes;
pub mod watch;
