//! `larder snapshotter` through its socket, with real mounts.

mod activation;
mod attached;
mod containers;
mod crash;
mod detached;
mod layers;
mod mapped;
mod preload;
mod suite;
mod unit;
