//! Test data, a fake registry and the runner of integration tests: layers and images built in code, and a registry that fails on purpose.
//!
//! This crate knows only [`larder_model`], so that an edit of the layer engine or of the registry client does not rebuild
//! it.

#![forbid(unsafe_code)]

pub mod image;
pub mod layer;
pub mod registry;
pub mod runner;
