//! Cancel, refresh and delete.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use maud::html;

use super::Ui;
use super::cache::parse;
use super::guard::{Posted, Visitor};
use super::layout::{Main, Menu, token};
use super::respond::{failed, go_to};
use super::text::bytes;
use crate::api::errors::Problem;

/// Cancels the build or the refresh of a cache.
pub(super) async fn cancel(State(ui): State<Arc<Ui>>, Path(id): Path<String>, posted: Posted) -> Response {
    let cancel = async { Ok(ui.app.service().cancel(&posted.visitor.tenant, parse(&id)?).await?) };
    done(cancel.await.map(|_| ()), &format!("/ui/caches/{id}"))
}

/// Starts a refresh of a cache.
pub(super) async fn refresh(State(ui): State<Arc<Ui>>, Path(id): Path<String>, posted: Posted) -> Response {
    let refresh = async { Ok(ui.app.service().refresh(&posted.visitor.tenant, parse(&id)?).await?) };
    done(refresh.await.map(|_| ()), &format!("/ui/caches/{id}"))
}

/// Deletes a cache after its confirmation.
pub(super) async fn delete(State(ui): State<Arc<Ui>>, Path(id): Path<String>, posted: Posted) -> Response {
    let delete = async { Ok(ui.app.service().delete(&posted.visitor.tenant, parse(&id)?).await?) };
    done(delete.await.map(|_| ()), "/ui/")
}

fn done(result: Result<(), Problem>, next: &str) -> Response {
    match result {
        Ok(()) => go_to(next),
        Err(problem) => failed(problem),
    }
}

/// Asks whether to delete a cache.
pub(super) async fn confirm(State(ui): State<Arc<Ui>>, Path(id): Path<String>, visitor: Visitor) -> Response {
    match question(&ui, &visitor, &id).await {
        Ok(main) => main.answer(&visitor),
        Err(problem) => failed(problem),
    }
}

async fn question(ui: &Ui, visitor: &Visitor, id: &str) -> Result<Main, Problem> {
    let service = ui.app.service();
    let record = service.get(&visitor.tenant, parse(id)?).await?;
    let overview = service.overview_of(&record, false).await?;
    let title = format!("Delete {}?", record.spec.name);
    let content = html! {
        h1 { (title) }
        p { (bytes(overview.reserved_bytes)) " of reserved space become free." }
        @if !overview.attached.is_empty() {
            p { "It is attached. Its volume is deleted after it is detached." }
        }
        form.actions method="post" action={ "/ui/caches/" (record.id) "/delete" } {
            (token(visitor))
            button.danger { "Delete" }
            a.button href={ "/ui/caches/" (record.id) } { "Keep" }
        }
    };
    Ok(Main { title, menu: Menu::Caches, live: None, content })
}
