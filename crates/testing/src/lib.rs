//! Test data, the runner of integration tests, and a fake registry with deliberate faults.
//!
//! This crate depends only on [`larder_model`], so that a change to the layer engine or the registry client
//! does not rebuild it.

#![forbid(unsafe_code)]

pub mod image;
pub mod layer;
pub mod registry;
pub mod runner;
