//! `larder attach` and `larder detach`.

mod disks;
mod mounts;
mod podman;
mod policies;
mod trusted;
