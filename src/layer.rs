//! Blocking: decode, hash, tar members, and the sink that writes the tree of a layer.

pub mod decode;
pub mod limits;
pub mod tar;
pub mod tar_split;
