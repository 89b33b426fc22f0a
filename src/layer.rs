//! Blocking: decode, hash, tar members, and the sink that writes the tree of a layer.
