//! Redirects: which responses are one, and where they lead.

use reqwest::header::LOCATION;
use reqwest::{StatusCode, Url};

use super::error::{Fault, clean_url};
use super::reply::Reply;

/// Maximum number of redirects followed for one request.
pub(super) const MAX_HOPS: usize = 10;

/// Reports whether a response with this status is a redirect to follow.
pub(super) fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Returns the target of a redirect from `url`.
pub(super) fn target(url: &Url, reply: &Reply) -> Result<Url, Fault> {
    // Not only ASCII: some servers send paths unencoded, and a URL encodes them.
    let location = reply.headers().get(LOCATION).and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
    let next = location.and_then(|location| url.join(location).ok());
    let next =
        next.ok_or_else(|| Fault::Corrupt(format!("{}, without a usable Location", reply.status())))?;
    let fall = url.scheme() == "https" && next.scheme() != "https";
    if fall || !matches!(next.scheme(), "http" | "https") {
        return Err(Fault::Refused(format!("a redirect from {} to {}", url.scheme(), clean_url(&next))));
    }
    Ok(next)
}
