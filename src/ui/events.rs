//! The events by which the script notices changes. They contain only IDs; the script requests the page again.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use axum::response::sse::Event;

use super::Ui;
use super::guard::Visitor;
use super::respond::failed;
use crate::api::changes::{Change, Changes, stream_of};

/// Follows the caches that the visitor can see, until the session ends.
pub(super) async fn events(State(ui): State<Arc<Ui>>, visitor: Visitor) -> Response {
    let changes = match Changes::new(&ui.app, &visitor.tenant, visitor.is_admin()) {
        Ok(changes) => changes,
        Err(problem) => return failed(problem),
    };
    let (app, cookie) = (Arc::clone(&ui.app), visitor.cookie);
    let lasts = move |_: &[Change]| match &cookie {
        None => true,
        Some(cookie) => ui.sessions.find(cookie, ui.now(), false).is_some(),
    };
    stream_of(&app, changes, lasts, event)
}

fn event(change: &Change) -> Event {
    match change {
        Change::Cache(listed) => Event::default().event("cache").data(listed.image_cache.id.to_string()),
        Change::Removed(id) => Event::default().event("removed").data(id.to_string()),
    }
}
