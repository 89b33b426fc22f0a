//! `larder attach` and `larder detach`.

mod mounts;
