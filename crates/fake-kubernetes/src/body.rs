//! The body of a response, which can be a stream.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;

/// A body of any kind.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Delay before a body breaks off, so that the data before it is sent.
pub(super) const FLUSH: Duration = Duration::from_millis(20);
