//! `larder snapshotter` at its socket, with real mounts.

mod attached;
mod containers;
mod crash;
mod detached;
mod layers;
mod preload;
mod suite;
mod unit;
