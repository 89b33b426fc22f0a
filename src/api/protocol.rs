//! HTTP rules that the library leaves to the server.

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::errors::Problem;

/// Refuses a request of HTTP/1.1 that does not have exactly one valid `Host` (RFC 9112, 3.2).
pub(super) async fn one_host(request: Request, next: Next) -> Response {
    if request.version() == Version::HTTP_11 {
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let valid =
            |host: &[u8]| host.is_empty() || (!host.contains(&b'@') && Authority::try_from(host).is_ok());
        let one = hosts.next().is_some_and(|host| valid(host.as_bytes())) && hosts.next().is_none();
        if !one {
            return Problem::invalid("Host: send it exactly once, with a valid value").into_response();
        }
    }
    next.run(request).await
}
