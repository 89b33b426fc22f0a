//! Feature `testing`: builders of layers and images, a registry and a Kubernetes API server that misbehave on purpose.

pub mod clock;
pub mod image;
pub mod kubernetes;
pub mod layer;
pub mod registry;
