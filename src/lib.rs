//! Larder builds node-level image caches: a list of container images in, one sealed and proven volume out.
//!
//! # The map of the house
//!
//! | module | what it is for |
//! |---|---|
//! | [`model`] | pure types: digest, reference, platform, manifest, chain, job, event, `cache.json` |
//! | [`sys`] | the only place with system calls: directories by descriptor, attributes, sync, space, privileges, confinement |
//! | [`config`] | `larder.toml`, one section per file; unknown keys refused, all faults told at once |
//! | [`registry`] | async: hosts and mirrors, authentication, retry, blobs that resume |
//! | [`secrets`] | pull secrets and docker configs by the kubelet's keyring rules |
//! | [`layer`] | blocking: decode, hash, tar members, and the sink that writes a layer's tree |
//! | [`volume`] | layout, cap, journal, commit in chain order, seal |
//! | [`verify`] | proves a sealed volume from its own bytes |
//! | [`api`] | HTTP: routes, authentication, listeners, the one map from error to status |
//! | [`caches`] | the image caches of a daemon: service, store, queue, runners, expiry |
//! | [`build`] | plan, admission, and the pipeline that joins registry, layer and volume |
//! | [`client`] | the client of the daemon's API |
//! | [`cli`] | one file per command, terminal and NDJSON output |
//! | [`telemetry`] | logs, metrics, the service manager |
//! | `testing` | feature `testing`: builders of layers and images, a registry and a Kubernetes API server that misbehave on purpose |
//!
//! # The import rule
//!
//! Imports run one way: `main → cli → {api, client} → caches → {build, verify} → {registry, secrets, layer, volume} →
//! {sys, model, config}`.
//! `registry`, `secrets`, `layer` and `volume` do not know each other; `build` joins them, and `verify`, beside it, reads
//! volumes with `layer`. `telemetry` may be imported by all, `testing` only by tests and benches.

pub mod api;
pub mod build;
pub mod caches;
pub mod cli;
pub mod client;
pub mod config;
pub mod layer;
pub mod model;
pub mod registry;
pub mod secrets;
pub mod sys;
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
pub mod verify;
pub mod volume;
