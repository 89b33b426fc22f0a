//! Image stores in the configuration of podman, buildah and CRI-O, which read them by one library (containers/storage).
//!
//! | module | what it is for |
//! |---|---|
//! | [`config`] | which file makes them known, and what is in it |
//! | [`node`] | what of it is on a node |
//! | [`skeleton`] | what lies below the mount of a store, so that nobody trips over one that is not mounted |

pub mod config;
pub mod node;
pub mod skeleton;
