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
//! | [`keys`] | the files of the keys by which volumes are signed |
//! | [`secrets`] | pull secrets and docker configs by the kubelet's keyring rules |
//! | [`archive`] | OCI layouts and archives of images, read instead of a registry |
//! | [`layer`] | blocking: decode, hash, tar members, and the sink that writes a layer's tree |
//! | [`volume`] | layout, cap, journal, commit in chain order, seal |
//! | [`trees`] | the layers of a volume, opened in whichever form they have |
//! | [`prefetch`] | what containers read first when they start: `prefetch.list`, and reading it |
//! | [`rootfs`] | an image of a sealed volume, mounted as one read-only tree |
//! | [`verify`] | proves a sealed volume from its own bytes |
//! | [`snapshot`] | a sealed volume as one thing that can be carried away: archives of its images, the image of its disk; the container image of larder itself |
//! | [`api`] | HTTP: routes, authentication, listeners, the one map from error to status |
//! | [`caches`] | the image caches of a daemon: service, store, queue, runners, expiry |
//! | [`kubernetes`] | the same caches in a cluster: custom resources, pods, volume snapshots, a lease; the agent of a node |
//! | [`build`] | plan, admission, and the pipeline that joins registry, layer and volume; the measure of all that on a node |
//! | [`client`] | the client of the daemon's API |
//! | [`node`] | what starts containers from caches: the snapshotter for containerd, and images in it without a registry |
//! | [`cli`] | one file per command, terminal and NDJSON output |
//! | [`telemetry`] | logs, metrics, the service manager |
//! | `testing` | feature `testing`: builders of layers and images, a registry and a Kubernetes API server that misbehave on purpose |
//!
//! # The import rule
//!
//! Imports run one way: `main → cli → {api, client, kubernetes, node} → caches → {build, snapshot, rootfs} → verify →
//! prefetch → trees → {registry, secrets, keys, archive, volume} → layer → {sys, model, config}`.
//! `registry`, `secrets`, `keys`, `archive` and `volume` do not know each other; `archive` alone knows `layer`, whose reader of tars
//! it uses. `build` joins them; `snapshot`, beside it, and `verify` read volumes with `layer`, by way of `trees`. `telemetry` may be imported by
//! all, `testing` only by tests and benches.

#![forbid(unsafe_code)]

pub mod api;
pub mod archive;
pub mod builder;
pub mod caches;
pub mod cli;
pub mod client;
pub mod config;
pub mod export;
pub mod keys;
pub mod kubernetes;
pub mod node;
pub mod prefetch;
pub mod rootfs;
pub mod secrets;

pub mod telemetry;
pub mod trees;
pub mod verify;
pub mod volume;
