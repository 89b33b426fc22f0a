//! What fills the disk, and what a deletion would free.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use super::Ui;
use super::guard::Visitor;
use super::layout::{Main, Menu};
use super::list::{address, whose};
use super::respond::failed;
use super::text::{bytes, status};
use crate::api::errors::Problem;
use crate::api::wire::beyond::Listed;
use crate::caches::record::Record;
use larder_model::digest::Digest;
use larder_model::image_cache::TenantName;

/// Width of the bar, pixels.
const WIDTH: u64 = 600;

/// A cache and the layers on its served volume.
#[derive(Debug)]
struct Row {
    listed: Listed,
    layers: Vec<(Digest, u64)>,
}

/// The space of a row that no other cache of its tenant has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Share {
    alone: u64,
    shared: u64,
}

/// The parts of the bar, bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Space {
    used: u64,
    reserved: u64,
    /// `None` if there is no limit.
    capacity: Option<u64>,
    /// Free space of the file system.
    disk_free: Option<u64>,
}

/// Shows the space of the host, or of the tenant.
pub(super) async fn page(State(ui): State<Arc<Ui>>, visitor: Visitor) -> Response {
    match show(&ui, &visitor).await {
        Ok(main) => main.answer(&visitor),
        Err(problem) => failed(problem),
    }
}

async fn show(ui: &Ui, visitor: &Visitor) -> Result<Main, Problem> {
    let service = ui.app.service();
    let row = |record: &Record, overview| {
        let layers = record.content.as_ref().map(|content| content.layers.as_slice()).unwrap_or_default();
        let layers = layers.iter().map(|layer| (layer.blob.clone(), layer.size)).collect();
        Row { listed: Listed { image_cache: record.into(), overview }, layers }
    };
    let mut rows = service.overview(whose(visitor), row).await?;
    let used = rows.iter().map(|row| row.listed.overview.used_bytes).sum();
    let reserved = rows.iter().map(|row| row.listed.overview.reserved_bytes).sum();
    let mut space = Space { used, reserved, ..Space::default() };
    if visitor.is_admin() {
        let host = service.host().await?;
        space = Space { capacity: host.capacity_bytes, disk_free: host.free_bytes, ..space };
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.listed.overview.reserved_bytes));
    let live = describe(space);
    let content = html! {
        h1 { "Capacity" }
        p { (live) }
        (bar(space))
        @if let Some(free) = space.disk_free { p { "The file system of the volumes has " (bytes(free)) " free." } }
        h2 { "What a deletion would free" }
        @if rows.is_empty() { p { "There are no image caches." } } @else { (table(&rows, visitor.is_admin())) }
    };
    Ok(Main { title: "Capacity".into(), menu: Menu::Capacity, live: Some(live), content })
}

fn describe(space: Space) -> String {
    let mut text = format!("{} used, {} reserved", bytes(space.used), bytes(space.reserved));
    match space.capacity {
        Some(capacity) => {
            let free = capacity.saturating_sub(space.reserved);
            text.push_str(&format!(", {} of {} free.", bytes(free), bytes(capacity)));
        }
        None => text.push('.'),
    }
    text
}

/// Returns a bar of used, reserved and free space.
fn bar(space: Space) -> Markup {
    let whole = space.capacity.unwrap_or(space.reserved).max(space.reserved).max(space.used);
    if whole == 0 {
        return html! {};
    }
    let width =
        |part: u64| u64::try_from(u128::from(part) * u128::from(WIDTH) / u128::from(whole)).unwrap_or(WIDTH);
    let (used, reserved) = (width(space.used), width(space.reserved.max(space.used)));
    html! {
        svg.bar role="img" aria-label=(describe(space)) viewBox={ "0 0 " (WIDTH) " 28" } preserveAspectRatio="none" height="28" {
            rect.b-free fill="#8883" width=(WIDTH) height="28" { title { "free" } }
            rect.b-reserved fill="#8ab4f8" width=(reserved) height="28" { title { (bytes(space.reserved)) " reserved" } }
            rect.b-used fill="#2f6fd0" width=(used) height="28" { title { (bytes(space.used)) " used" } }
        }
        ul.legend aria-hidden="true" {
            @for (class, name) in [("b-used", "used"), ("b-reserved", "reserved, not used"), ("b-free", "free")] {
                li { svg width="14" height="12" { rect.(class) y="1" width="12" height="10" {} } (name) }
            }
        }
    }
}

/// Returns for each row the size of the layers that no other cache of its tenant has, and of the others.
fn shares(rows: &[Row]) -> Vec<Share> {
    let mut owners: HashMap<(&TenantName, &Digest), u32> = HashMap::new();
    for row in rows {
        for (blob, _) in &row.layers {
            *owners.entry((&row.listed.overview.tenant, blob)).or_default() += 1;
        }
    }
    let share = |row: &Row| {
        let mut share = Share::default();
        for (blob, size) in &row.layers {
            let is_alone = owners.get(&(&row.listed.overview.tenant, blob)) == Some(&1);
            let part = if is_alone { &mut share.alone } else { &mut share.shared };
            *part = part.saturating_add(*size);
        }
        share
    };
    rows.iter().map(share).collect()
}

fn table(rows: &[Row], with_tenant: bool) -> Markup {
    let heads = ["Status", "Reserved space", "Layers of it alone", "Layers that others have"];
    html! {
        div #frees.scroll tabindex="0" role="region" aria-label="What a deletion would free" {
            table {
                thead { tr {
                    th scope="col" { "Name" }
                    @if with_tenant { th scope="col" { "Tenant" } }
                    @for head in heads { th scope="col" { (head) } }
                } }
                tbody {
                    @for (row, share) in rows.iter().zip(shares(rows)) {
                        @let Listed { image_cache: cache, overview } = &row.listed;
                        tr {
                            th scope="row" { a #{ "c-" (cache.id) } href=(address(cache.id, overview, with_tenant)) { (cache.name) } }
                            @if with_tenant { td { (overview.tenant) } }
                            td { (status(cache.status)) }
                            td { (bytes(overview.reserved_bytes)) }
                            td { (bytes(share.alone)) }
                            td { (bytes(share.shared)) }
                        }
                    }
                }
            }
        }
    }
}
