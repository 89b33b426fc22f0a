//! `larder node`: the agent of one node. It sees to it that the image caches that are wanted there are attached there.
//!
//! ```text
//! pods of the node, namespaces, ImageCaches ──► wish      which volumes are wanted, and by whom
//! claims, holders, what is attached ──────────► holding   one step for each: what there is, nearer to what is wanted
//!                                                 │
//!                 claim from the snapshot ◄───────┤ agent  takes the steps, one pass after the other
//!                 holder pod on this node ◄───────┤
//!                 attach, detach          ◄───────┘
//! ```
//!
//! A pod that runs cannot gain a claim, so each volume has a pod of its own on the node, which does nothing but hold it: the
//! kubelet mounts the volume for the pod, and the agent, who sees the kubelet's directory, attaches what is mounted there.
//!
//! | where | what |
//! |---|---|
//! | the namespace of volumes, Pod Security "restricted" | the copy of the snapshot, which daemons offer there; claims `ic-<uid>-<node>`; pods that hold them |
//! | another, "privileged" | the agents, who may not make pods there |
//! | the node | what is attached, by [`Attacher`], under names that follow from those of claims |
//!
//! All state is in these objects and on the node. Every pass begins with what is seen, so an agent that was killed goes on
//! where it was. Claims and holders are owned by the Node object: when a node is gone, the cluster's own garbage collector
//! takes them away, and nobody needs the right to look after the nodes of others.
//!
//! # What is believed
//!
//! The status of ImageCaches, which is Larder's alone; and what lies in the namespace of volumes, where nobody else may write.
//! The volume itself is not: it is attached only if it is sealed, with the digest that the record of its cache has.

mod act;
pub mod agent;
pub mod attacher;
mod backoff;
pub mod health;
pub(super) mod held;
mod holding;
mod known;
mod objects;
mod place;
mod readiness;
mod scoped;
mod tell;
mod used;
mod wish;

pub use agent::{Agent, Settings};
pub use attacher::{AttachFault, Attacher};
