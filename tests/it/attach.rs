//! `larder attach` and `larder detach`.

mod disks;
mod mounts;
mod own_store;
mod podman;
mod policies;
mod trusted;
mod userns;
