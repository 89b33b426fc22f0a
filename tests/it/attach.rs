//! `larder attach` and `larder detach`.

mod content_cache;
mod disks;
mod mounts;
mod own_store;
mod podman;
mod policies;
mod trusted;
mod userns;
