//! Configures additional image stores for podman, buildah and CRI-O, which all use containers/storage.
//!
//! | module | purpose |
//! |---|---|
//! | [`config`] | the configuration file for the stores and its content |
//! | [`dependents`] | images and containers of the node that use layers of a volume |
//! | [`graph_roots`] | the directories in which the node stores its own images |
//! | [`node`] | the programs and configuration of a node |
//! | [`remove`] | removes dependent images and containers |
//! | [`skeleton`] | an empty image store below each mount point, for when it is not mounted |

pub mod config;
pub mod dependents;
pub mod graph_roots;
pub mod node;
pub mod remove;
pub mod skeleton;
