//! Feature `testing`: builders of layers and images, a registry that misbehaves on purpose.

pub mod clock;
pub mod image;
pub mod layer;
pub mod registry;
