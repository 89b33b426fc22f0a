//! `larder attach` and `larder detach`.

mod content_cache;
mod disks;
mod mounts;
mod podman;
mod policies;
mod trusted;
