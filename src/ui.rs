//! Pages for a browser, at `/ui/`: what is cached, what is being built, and what it waits for.
//!
//! ```text
//! guard ──► list, cache, capacity, create ──► layout, frame ──► respond
//! session or   a page, or only its <main>     menu, head        policy,
//! socket       for the script                                   no-store
//! ```
//!
//! The pages are complete without a script. `script.js` replaces `<main>` when `events` reports a change,
//! and shows the plan while a person types. Every POST has a token of the session (`guard`).

mod actions;
mod assets;
mod cache;
mod capacity;
mod create;
mod events;
mod form;
mod frame;
mod guard;
mod layout;
mod list;
mod respond;
mod session;
mod sign_in;
#[cfg(test)]
mod tests;
mod text;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::Request;
use axum::response::{Redirect, Response};
use axum::routing::{get, post};

use crate::api::App;
use crate::api::errors::{Code, Problem};
use respond::failed;
use session::{Secret256, Sessions};

/// The state shared by all pages.
#[derive(Debug)]
struct Ui {
    app: Arc<App>,
    sessions: Sessions,
    /// The token of forms for peers of the Unix socket, which have no session.
    socket_token: Secret256,
}

/// Creates the pages, with the state of the API.
pub(crate) fn pages(app: Arc<App>) -> Router {
    let ui = Ui { app, sessions: Sessions::default(), socket_token: Secret256::random() };
    Router::new()
        .route("/", get(async || Redirect::to("/ui/")))
        .route("/ui", get(async || Redirect::to("/ui/")))
        .route("/ui/", get(list::page))
        .route("/ui/caches/{id}", get(cache::page))
        .route("/ui/caches/{id}/cancel", post(actions::cancel))
        .route("/ui/caches/{id}/refresh", post(actions::refresh))
        .route("/ui/caches/{id}/delete", get(actions::confirm).post(actions::delete))
        .route("/ui/capacity", get(capacity::page))
        .route("/ui/create", get(create::page).post(create::create))
        .route("/ui/plan", post(create::plan))
        .route("/ui/events", get(events::events))
        .route("/ui/sign-in", get(sign_in::page).post(sign_in::sign_in))
        .route("/ui/sign-out", post(sign_in::sign_out))
        .route("/ui/style.css", get(assets::style))
        .route("/ui/script.js", get(assets::script))
        .route("/ui/icon.svg", get(assets::icon))
        .route("/ui/{*rest}", get(no_page))
        .method_not_allowed_fallback(no_method)
        .with_state(Arc::new(ui))
        .layer(axum::middleware::map_response(respond::protect))
}

async fn no_page(_: Request) -> Response {
    failed(Problem::new(Code::NoRoute, "there is no such page"))
}

async fn no_method() -> Response {
    failed(Problem::new(Code::Method, "this page does not support the method"))
}

impl Ui {
    fn now(&self) -> Instant {
        Instant::now()
    }
}
