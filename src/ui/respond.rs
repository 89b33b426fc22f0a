//! Answers: HTML with a strict policy, and errors as pages.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse as _, Redirect, Response};
use maud::{Markup, html};

use super::frame;
use super::text::lines;
use crate::api::errors::Problem;

/// The policy of every page: only files of this daemon, no inline style or script.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; \
    form-action 'self'; frame-ancestors 'none'; base-uri 'none'";
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");

/// Returns an answer with HTML.
pub(super) fn page(markup: Markup) -> Response {
    ([(header::CONTENT_TYPE, HTML)], markup.into_string()).into_response()
}

/// Returns an answer that leads to another page.
pub(super) fn go_to(path: &str) -> Response {
    Redirect::to(path).into_response()
}

/// Returns an error as a page, with the status and the log entry of the API.
pub(super) fn failed(problem: Problem) -> Response {
    let status = problem.code().status();
    let title = status.canonical_reason().unwrap_or("Error");
    let markup = frame::plain(
        title,
        html! {
            h1 { (title) }
            div.problem role="alert" { (lines(problem.message())) }
            p { a href="/ui/" { "All image caches" } }
        },
    );
    with_page(problem, markup)
}

/// Returns the answer to an error with another page.
pub(super) fn with_page(problem: Problem, markup: Markup) -> Response {
    let mut response = problem.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HTML);
    headers.remove(header::CONTENT_LENGTH);
    // Without it, no browser opens its own window for a password.
    headers.remove(header::WWW_AUTHENTICATE);
    *response.body_mut() = Body::from(markup.into_string());
    response
}

/// Adds the headers that protect a page.
pub(super) async fn protect(mut response: Response) -> Response {
    let fixed = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    let headers = response.headers_mut();
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}
