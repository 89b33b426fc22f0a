//! `larder attach` and `larder detach`.

mod dependents;
mod disks;
mod mounts;
mod podman;
mod policies;
mod trusted;
mod userns;
