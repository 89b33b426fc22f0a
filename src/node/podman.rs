//! Image stores in the configuration of podman, buildah and CRI-O, which read them by one library (containers/storage).
//!
//! | module | what it is for |
//! |---|---|
//! | [`config`] | which file makes them known, and what is in it |
//! | [`dependents`] | images and containers of the node that stand on layers of a volume |
//! | [`graph_roots`] | where the node keeps its own images |
//! | [`node`] | what of it is on a node |
//! | [`remove`] | removing such images and containers |
//! | [`skeleton`] | what lies below the mount of a store, so that nobody trips over one that is not mounted |

pub mod config;
pub mod dependents;
pub mod graph_roots;
pub mod node;
pub mod remove;
pub mod skeleton;
