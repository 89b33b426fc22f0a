//! The page of one image cache.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use chrono::{DateTime, Utc};
use maud::{Markup, html};

use super::guard::Visitor;
use super::layout::{Main, Menu, token};
use super::respond::failed;
use super::text::{bytes, exact, lines, short, since, status, until};
use super::{Ui, list};
use crate::api::errors::Problem;
use crate::caches::progress::LayerState;
use crate::caches::record::{Origin, Record};
use crate::caches::service::{Details, LayerDetails, Overview};
use crate::caches::volumes::Snapshot;
use crate::waterfall;
use larder_model::escape::escape;
use larder_model::image_cache::{CacheId, Status, TenantName};
use larder_model::timeline::Timeline;

/// Everything that the page shows.
struct Shown {
    record: Record,
    details: Details,
    overview: Overview,
    timeline: Option<Box<Timeline>>,
    snapshots: Vec<Snapshot>,
    now: DateTime<Utc>,
}

/// Shows the page of a cache.
pub(super) async fn page(State(ui): State<Arc<Ui>>, Path(id): Path<String>, visitor: Visitor) -> Response {
    match show(&ui, &visitor, &id).await {
        Ok(main) => main.answer(&visitor),
        Err(problem) => failed(problem),
    }
}

/// Parses the ID of a path. A malformed ID is reported like an unknown one.
pub(super) fn parse(id: &str) -> Result<CacheId, Problem> {
    id.parse().map_err(|_| Problem::no_such_cache())
}

/// Returns the tenant whose cache is shown. Only the tenant `admin` can name another one.
fn owner(visitor: &Visitor) -> Result<TenantName, Problem> {
    match visitor.query.get("tenant") {
        "" => Ok(visitor.tenant.clone()),
        other if visitor.is_admin() || other == visitor.tenant.as_str() => {
            other.parse().map_err(|_| Problem::no_such_cache())
        }
        _ => Err(Problem::no_such_cache()),
    }
}

async fn show(ui: &Ui, visitor: &Visitor, id: &str) -> Result<Main, Problem> {
    let (id, owner) = (parse(id)?, owner(visitor)?);
    let service = ui.app.service();
    let (record, details) = service.details(&owner, id).await?;
    let overview = service.overview_of(&record, visitor.is_admin()).await?;
    let timeline = service.timeline(&owner, id).await?;
    let snapshots = service.snapshots(&owner, id, visitor.is_admin()).await?;
    let shown = Shown { record, details, overview, timeline, snapshots, now: ui.app.time() };
    let name = &shown.record.spec.name;
    let refreshing = if shown.record.is_refreshing() { ", refresh in progress" } else { "" };
    let live = format!("{name} is {}{refreshing}", shown.record.status);
    let is_own = owner == visitor.tenant;
    Ok(Main {
        title: name.to_string(),
        menu: Menu::Caches,
        live: Some(live),
        content: shown.content(visitor, is_own),
    })
}

impl Shown {
    fn content(&self, visitor: &Visitor, is_own: bool) -> Markup {
        let reason = list::reason(self.record.reason(), self.overview.build.as_ref());
        html! {
            h1 { (self.record.spec.name) " " (status(self.record.status)) }
            @if !reason.is_empty() { div.problem { (lines(&reason)) } }
            @if let Some(waiting) = self.record.work.as_ref().and_then(|work| work.waiting.as_ref()) {
                p { "Waiting: " (escape(waiting)) }
            }
            @if self.overview.build.is_some() { p { (list::progress(self.overview.build.as_ref())) } }
            @if is_own { (self.actions(visitor)) }
            (self.facts())
            h2 { "Build" }
            (self.build())
            h2 { "Images" }
            (self.images())
            h2 { "Layers" }
            (self.layers())
            h2 { "Events" }
            (self.events())
            h2 { "Commands" }
            (self.commands(is_own))
        }
    }

    fn actions(&self, visitor: &Visitor) -> Markup {
        let id = self.record.id;
        let form = |action: &str, title: &str| {
            html! {
                form method="post" action={ "/ui/caches/" (id) "/" (action) } {
                    (token(visitor))
                    button #{ "do-" (action) } { (title) }
                }
            }
        };
        let can_refresh = self.record.status == Status::Available && self.record.work.is_none();
        html! {
            div.actions {
                @if self.record.wants_build() {
                    (form("cancel", if self.record.is_refreshing() { "Cancel the refresh" } else { "Cancel the build" }))
                }
                @if can_refresh && self.record.import.is_none() { (form("refresh", "Refresh")) }
                @if self.record.status != Status::Deleting {
                    a.button #do-delete href={ "/ui/caches/" (id) "/delete" } { "Delete…" }
                }
            }
        }
    }

    fn facts(&self) -> Markup {
        let (record, overview, details) = (&self.record, &self.overview, &self.details);
        html! {
            dl {
                dt { "ID" } dd { code { (record.id) } }
                dt { "Tenant" } dd { (record.tenant) }
                dt { "Size" } dd { (record.spec.size_gib) " GiB, " (bytes(overview.used_bytes)) " used, "
                    (bytes(overview.reserved_bytes)) " reserved" }
                dt { "Created" } dd { (since(overview.ordered_at, self.now)) " ago" }
                dt { "Expires" } dd { (until(overview.expires_at, self.now)) }
                @if let Some(sealed) = details.sealed_at { dt { "Sealed" } dd { (exact(sealed)) } }
                @if let Some(digest) = &details.digest { dt { "Digest" } dd { code { (digest) } } }
                dt { "Attached" } dd { (list::attached(overview)) }
                @if let Some(archive) = details.archive { dt { "Imported" } dd { "from an archive of " (bytes(archive)) } }
            }
        }
    }

    fn build(&self) -> Markup {
        let Some(timeline) = &self.timeline else {
            return html! { p { "There is no timeline: no build has started since the daemon records them." } };
        };
        html! {
            p { (waterfall::describe(timeline)) }
            (waterfall::legend())
            div #timeline.scroll tabindex="0" role="region" aria-label="Timeline of the build" {
                (waterfall::picture(timeline))
            }
        }
    }

    fn images(&self) -> Markup {
        let given = self.record.spec.images.iter().map(larder_model::reference::ImageReference::given);
        html! {
            div #images.scroll tabindex="0" role="region" aria-label="Images" {
                table {
                    thead { tr { @for head in ["Image", "Layers", "Compressed", "Manifest"] { th scope="col" { (head) } } } }
                    tbody {
                        @for name in given {
                            @let known = self.details.images.iter().find(|image| image.reference == name);
                            tr {
                                th scope="row" { (escape(name)) }
                                @match known {
                                    None => td colspan="3" { "not resolved" },
                                    Some(image) => {
                                        td { (image.layers_done) " of " (image.layers) }
                                        td { (bytes(image.compressed_size)) }
                                        td { code { (image.manifest) } }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    fn layers(&self) -> Markup {
        if self.details.layers.is_empty() {
            return html! { p { "No layer has been started." } };
        }
        html! {
            div #layers.scroll tabindex="0" role="region" aria-label="Layers" {
                table {
                    thead { tr {
                        @for head in ["Layer", "Compressed", "Size", "Time", "State", "Origin", "Images"] { th scope="col" { (head) } }
                    } }
                    tbody { @for layer in &self.details.layers { (self.layer(layer)) } }
                }
            }
        }
    }

    fn layer(&self, layer: &LayerDetails) -> Markup {
        let all = self.details.images.len();
        let names = layer.images.iter().map(|image| escape(image)).collect::<Vec<_>>().join(", ");
        html! {
            tr {
                th scope="row" { (short(&layer.blob)) }
                td { (bytes(layer.compressed_size)) }
                td { @if layer.size > 0 { (bytes(layer.size)) } @else { "–" } }
                td { (waterfall::duration(layer.elapsed_ms)) }
                td { @match layer.state {
                    LayerState::Committed => "done",
                    LayerState::Running => { (bytes(layer.received)) " received" }
                } }
                td { (origin(layer, &self.record.tenant)) }
                td.names title=(names) {
                    @if layer.images.len() > 1 { "shared by " (layer.images.len()) " of " (all) ": " }
                    (names)
                }
            }
        }
    }

    fn events(&self) -> Markup {
        html! {
            div #events.scroll tabindex="0" role="region" aria-label="Events" {
                table {
                    thead { tr { @for head in ["Time", "Status", "Event"] { th scope="col" { (head) } } } }
                    tbody {
                        @for event in self.details.events.iter().rev() {
                            tr {
                                td { (exact(event.time)) }
                                td { (status(event.status)) }
                                td.names { (lines(&event.message)) }
                            }
                        }
                    }
                }
            }
        }
    }

    /// Returns the commands that use the served volume.
    fn commands(&self, is_own: bool) -> Markup {
        let name = &self.record.spec.name;
        let served = self.snapshots.iter().find(|snapshot| snapshot.served);
        let path = served.and_then(|snapshot| snapshot.path.as_ref());
        let path = path.map(|path| escape(&path.display().to_string()));
        html! {
            pre {
                @if served.is_some() && is_own { "larder attach " (name) "\n" }
                @if let Some(path) = &path {
                    @if !is_own { "larder attach " (path) "\n" }
                    "larder verify " (path) "\n"
                }
                @if is_own {
                    "larder cache show " (name) "\n"
                    "larder cache events " (name) "\n"
                    "larder cache report " (name) " --html " (name) ".html\n"
                }
            }
        }
    }
}

fn origin(layer: &LayerDetails, tenant: &TenantName) -> Markup {
    html! {
        @match (layer.from, layer.origin) {
            (Some(from), _) => { "copied from " a #{ "from-" (layer.blob.hex()) } href={ "/ui/caches/" (from) "?tenant=" (tenant) } { "another cache" } }
            (None, Origin::Fetched) => "fetched",
            (None, Origin::Present) => "earlier attempt",
            (None, Origin::Reused) => "copied",
        }
    }
}
