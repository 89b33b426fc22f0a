//! `larder attach` and `larder detach`.

mod mounts;
mod podman;
mod policies;
