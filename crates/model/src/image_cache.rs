//! The image cache as a tenant requests and sees it: names, limits and statuses.
//!
//! The limits are those of the vendor whose API Larder implements.

pub mod id;
pub mod name;
pub mod spec;
pub mod status;

pub use id::CacheId;
pub use name::{CacheName, TenantName};
pub use spec::Spec;
pub use status::Status;
