//! The `erofs` sink: a layer as an EROFS image, and a second image for what depends on the layers below.
//!
//! ```text
//! tar ──► apply ──► image of the change set      the same under any parents
//!           └─► fixup (against the layers below) ──► image that is mounted on top, if one is needed
//! ```

mod acl;
pub mod apply;
mod fitting;
pub mod fixup;
