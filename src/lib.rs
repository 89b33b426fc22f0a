//! Larder builds node-level image caches: from a list of container images, it builds one sealed and verified
//! volume.
//!
//! # Modules
//!
//! | module | purpose |
//! |---|---|
//! | [`config`] | `larder.toml`, one module per section; reports unknown keys and all other errors together |
//! | [`keys`] | key files: private keys that sign volumes, and trusted public keys |
//! | [`archive`] | OCI layouts and archives of images, as a source instead of a registry |
//! | [`volume`] | layout, size limit, journal, commit in chain order, seal |
//! | [`trees`] | access to the layers of a volume in either format |
//! | [`prefetch`] | computes `prefetch.list` of a volume, and reads the files that it names |
//! | [`rootfs`] | mounts an image of a sealed volume as one read-only tree |
//! | [`verify`] | verifies a sealed volume by its content |
//! | [`export`] | exports a sealed volume as archives or a disk image, and Larder's own container image |
//! | [`builder`] | plan, admission, the pipeline from registry to volume, and its benchmark |
//! | [`api`] | HTTP API: routes, authentication, listeners; the only mapping from errors to status codes |
//! | [`caches`] | image caches of a daemon: service, store, queue, runners, expiry |
//! | [`kubernetes`] | image caches in a cluster: custom resources, pods, snapshots, leases, node agent |
//! | [`client`] | client of the daemon's API |
//! | [`node`] | use of caches by container runtimes: containerd snapshotter, images without a registry |
//! | [`cli`] | commands, terminal output and NDJSON output |
//! | [`ui`] | pages of the daemon for a browser |
//! | [`waterfall`] | the timeline of a build as a picture, in a page or in a file to send |
//! | [`telemetry`] | logs, metrics, notifications to the service manager |
//!
//! # Crates
//!
//! | crate | purpose |
//! |---|---|
//! | [`larder_model`] | pure types: digest, reference, platform, manifest, chain, job, event, `cache.json` |
//! | [`larder_sys`] | system calls: directories, attributes, sync, space, privileges, confinement |
//! | [`larder_registry`] | async registry client: mirrors, authentication, retries, resumed transfers |
//! | [`larder_prefetch`] | the files that a container start reads first, and the format of `prefetch.list` |
//! | [`larder_secrets`] | pull secrets and docker configs, with the rules of the kubelet's keyring |
//! | [`larder_layer`] | blocking: decompression, hashes, tar members, and the writers of a layer's tree |
//! | [`larder_containerd_api`] | containerd's API, generated from its protobuf files |
//! | `larder_isal` | safe interface to ISA-L, Intel's gzip decoder and encoder |
//! | `larder_sha256` | SHA-256 of two streams at once on one core |
//! | `larder_testing` | test only: builders of layers and images, a faulty registry |
//! | `larder_fake_kubernetes` | test only: a faulty Kubernetes API server |
//!
//! docs/ARCHITECTURE.md has the import rule, which `tests/architecture.rs` checks.

#![forbid(unsafe_code)]

pub mod api;
pub mod archive;
pub mod blocking;
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
pub mod telemetry;
pub mod trees;
pub mod ui;
pub mod verify;
pub mod version;
pub mod volume;
pub mod waterfall;

mod document;
