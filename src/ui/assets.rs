//! The style sheet and the script.

use axum::http::header;
use axum::response::IntoResponse;

/// The style sheet of all pages.
pub(super) const STYLE: &str = include_str!("style.css");
/// The script of all pages. They work without it.
pub(super) const SCRIPT: &str = include_str!("script.js");

/// The icon of all pages: three layers.
pub(super) const ICON: &str = concat!(
    r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><g fill="#0b5cad">"##,
    r#"<path d="M8 1l7 3-7 3-7-3z"/><path d="M1 7l7 3 7-3v1.5l-7 3-7-3z"/><path d="M1 11l7 3 7-3v1.5l-7 3-7-3z"/></g></svg>"#,
);

pub(super) async fn icon() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "image/svg+xml")], ICON)
}

pub(super) async fn style() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], STYLE)
}

pub(super) async fn script() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], SCRIPT)
}
