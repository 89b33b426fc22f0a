//! Pure types without a runtime, files or sockets. Every other module can import them; they import no other
//! part of Larder.

#![forbid(unsafe_code)]

pub mod address_range;
pub mod age;
pub mod bench_report;
pub mod causes;
pub mod chain;
pub mod class;
pub mod count;
pub mod credential;
pub mod digest;
pub mod escape;
pub mod event;
pub mod image_cache;
pub mod io_error;
pub mod job;
pub mod key;
pub mod manifest;
pub mod matching;
pub mod plan_report;
pub mod platform;
pub mod pull_secret;
pub mod reference;
pub mod runtime;
pub mod seal;
pub mod shortage;
pub mod signature;
pub mod similar;
pub mod size;
pub mod sizing;
pub mod timeline;
pub mod trust;
