//! The settings of an agent.

use crate::config::node::Node;

/// Settings of an agent.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The section `[node]` of the configuration.
    pub config: Node,
    /// Name of the node.
    pub node: String,
}
