//! The image cache as a tenant orders it and sees it: names, limits, statuses.
//!
//! The limits are those of the vendor whose API is served.

pub mod id;
pub mod name;
pub mod spec;
pub mod status;

pub use id::CacheId;
pub use name::{CacheName, TenantName};
pub use spec::Spec;
pub use status::Status;
