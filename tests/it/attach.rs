//! `larder attach` and `larder detach`.

mod content_cache;
mod dependents;
mod disks;
mod mounts;
mod podman;
mod policies;
mod trusted;
mod userns;
