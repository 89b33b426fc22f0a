//! `larder node`: the agent of one node. It attaches the image caches that are wanted on the node.
//!
//! ```text
//! pods of the node, namespaces, ImageCaches ──► desired   which volumes are wanted, and by which pods
//! claims, holders, attached volumes ──────────► observed  the next step for each volume
//!                                                  │
//!                 claim from the snapshot ◄────────┤ agent  takes the steps, one pass after the other
//!                 holder pod on this node ◄────────┤
//!                 attach, detach          ◄────────┘
//! ```
//!
//! A running pod cannot gain a claim. Therefore each volume has a pod of its own on the node, the holder,
//! which only keeps the claim in use. The kubelet mounts the volume for that pod. The agent can see the
//! kubelet's directory and attaches the volume that is mounted there.
//!
//! | where (Pod Security) | what |
//! |---|---|
//! | the namespace of volumes, "restricted" | copies (from daemons); claims `ic-<uid>-<node>`; holders |
//! | another namespace, "privileged" | the agents, which cannot create pods there |
//! | the node | attached volumes, by [`Attacher`], under names derived from those of claims |
//!
//! All state is in these objects and on the node. Every pass starts from the observed state, so a killed
//! agent continues after a restart. The Node object owns claims and holders: when a node is deleted, the
//! garbage collector of the cluster deletes them, and no component needs permission for the nodes of others.
//!
//! # Trust
//!
//! The agent trusts the status of ImageCaches, which only Larder can write, and the objects in the namespace
//! of volumes, which only Larder can write. It does not trust the volume: a volume is attached only if it is
//! sealed, with the digest in the record of its cache.

pub mod agent;
pub mod attacher;
mod backoff;
mod caches;
mod cluster_view;
mod desired;
mod executor;
mod follow;
pub mod health;
pub(super) mod held;
mod labels;
mod mount_point;
mod notify;
mod objects;
mod observed;
mod readiness;
mod settings;
mod used;

pub use agent::Agent;
pub use attacher::{AttachFault, Attacher};
pub use settings::Settings;
