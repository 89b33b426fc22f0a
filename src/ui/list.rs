//! The list of image caches.

use std::cmp::Ordering;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use chrono::{DateTime, Utc};
use maud::{Markup, html};

use super::Ui;
use super::form::{Form, encode};
use super::guard::Visitor;
use super::layout::{Main, Menu};
use super::respond::failed;
use super::text::{bytes, since, status, until};
use crate::api::errors::Problem;
use crate::api::wire::beyond::Listed;
use crate::caches::record::Record;
use crate::caches::service::{BuildOverview, Overview, Whose};
use larder_model::escape::{escape, escape_to};
use larder_model::image_cache::Status;

/// Maximum length of a reason in the list, characters. The page of the cache has all of it.
const MAX_REASON: usize = 180;

/// The columns by which the list can be sorted: the name in the query, and the title.
const COLUMNS: [(&str, &str); 8] = [
    ("name", "Name"),
    ("tenant", "Tenant"),
    ("status", "Status"),
    ("progress", "Progress"),
    ("used", "Used / reserved"),
    ("age", "Age"),
    ("expires", "Expires"),
    ("attached", "Attached"),
];

/// The filter and the order of the list.
#[derive(Debug, Default)]
struct View {
    text: String,
    status: Option<Status>,
    sort: Option<&'static str>,
    descending: bool,
}

/// Shows the list of caches.
pub(super) async fn page(State(ui): State<Arc<Ui>>, visitor: Visitor) -> Response {
    match list(&ui, &visitor).await {
        Ok(main) => main.answer(&visitor),
        Err(problem) => failed(problem),
    }
}

/// Returns the caches that a visitor can see: those of all tenants for the tenant `admin`.
pub(super) fn whose(visitor: &Visitor) -> Whose<'_> {
    if visitor.is_admin() { Whose::All } else { Whose::Own(&visitor.tenant) }
}

async fn list(ui: &Ui, visitor: &Visitor) -> Result<Main, Problem> {
    let listed = |record: &Record, overview| Listed { image_cache: record.into(), overview };
    let all = ui.app.service().overview(whose(visitor), listed).await?;
    let view = View::of(&visitor.query);
    let live = summary(&all);
    let count = all.len();
    let shown = view.apply(all);
    let now = ui.app.time();
    let content = html! {
        h1 { "Image caches" }
        p { (live) }
        @if count == 0 {
            p { "There are no image caches. " a #first href="/ui/create" { "Create the first one" } "." }
        } @else {
            (view.filter())
            @if shown.is_empty() { p { "No image cache matches the filter." } }
            @else { (table(&view, &shown, visitor.is_admin(), now)) }
        }
    };
    Ok(Main { title: "Image caches".into(), menu: Menu::Caches, live: Some(live), content })
}

/// Describes the list in one sentence.
fn summary(all: &[Listed]) -> String {
    let counts = Status::ALL
        .map(|status| (status, all.iter().filter(|listed| listed.image_cache.status == status).count()));
    let counts = counts.iter().filter(|(_, count)| *count > 0);
    let counts: Vec<String> = counts.map(|(status, count)| format!("{count} {status}")).collect();
    match counts.as_slice() {
        [] => "0 in total.".to_owned(),
        counts => format!("{} in total: {}.", all.len(), counts.join(", ")),
    }
}

impl View {
    fn of(query: &Form) -> Self {
        let sort = COLUMNS.iter().map(|(name, _)| *name).find(|name| *name == query.get("sort"));
        let status = Status::ALL.into_iter().find(|status| status.to_string() == query.get("status"));
        View { text: query.get("q").to_owned(), status, sort, descending: query.get("order") == "desc" }
    }

    /// Returns the caches that match, in order.
    fn apply(&self, all: Vec<Listed>) -> Vec<Listed> {
        let text = self.text.to_lowercase();
        let matches = |listed: &Listed| {
            let cache = &listed.image_cache;
            let texts = [
                cache.name.as_str(),
                listed.overview.tenant.as_str(),
                cache.message.as_deref().unwrap_or(""),
            ];
            let mut texts = texts.into_iter().chain(cache.images.iter().map(String::as_str));
            self.status.is_none_or(|status| cache.status == status)
                && texts.any(|candidate| candidate.to_lowercase().contains(&text))
        };
        let mut shown: Vec<Listed> = all.into_iter().filter(matches).collect();
        shown.sort_by(|a, b| {
            let order = self.compare(a, b);
            if self.descending { order.reverse() } else { order }
        });
        shown
    }

    fn compare(&self, a: &Listed, b: &Listed) -> Ordering {
        let (x, y) = (&a.overview, &b.overview);
        let percent = |overview: &Overview| overview.build.as_ref().and_then(BuildOverview::percent);
        let never = DateTime::<Utc>::MAX_UTC;
        match self.sort.unwrap_or("age") {
            "name" => a.image_cache.name.cmp(&b.image_cache.name),
            "tenant" => x.tenant.cmp(&y.tenant),
            "status" => a.image_cache.status.to_string().cmp(&b.image_cache.status.to_string()),
            "progress" => percent(x).cmp(&percent(y)),
            "used" => x.used_bytes.cmp(&y.used_bytes),
            "expires" => x.expires_at.unwrap_or(never).cmp(&y.expires_at.unwrap_or(never)),
            "attached" => x.attached.len().cmp(&y.attached.len()),
            // The newest first.
            _ => y.ordered_at.cmp(&x.ordered_at),
        }
    }

    /// Returns the address of this view in another order.
    fn sorted_by(&self, column: &str) -> String {
        let is_current = self.sort == Some(column);
        let order = if is_current && !self.descending { "&order=desc" } else { "" };
        let status = self.status.map(|status| format!("&status={status}")).unwrap_or_default();
        format!("/ui/?q={}{status}&sort={column}{order}", encode(&self.text))
    }

    fn filter(&self) -> Markup {
        html! {
            form.filter method="get" action="/ui/" role="search" {
                div {
                    label for="q" { "Text" }
                    input #q type="search" name="q" value=(self.text) placeholder="name, image, message";
                }
                div {
                    label for="status" { "Status" }
                    select #status name="status" {
                        option value="" { "all" }
                        @for status in Status::ALL {
                            option value=(status) selected[self.status == Some(status)] { (status) }
                        }
                    }
                }
                @if let Some(sort) = self.sort { input type="hidden" name="sort" value=(sort); }
                @if self.descending { input type="hidden" name="order" value="desc"; }
                button #filter { "Filter" }
                @if !self.text.is_empty() || self.status.is_some() { a #all href="/ui/" { "Show all" } }
            }
        }
    }

    fn head(&self, column: &str, title: &str) -> Markup {
        let direction = if self.descending { "descending" } else { "ascending" };
        let sorted = (self.sort == Some(column)).then_some(direction);
        html! {
            th role="columnheader" scope="col" aria-sort=[sorted] {
                a #{ "by-" (column) } href=(self.sorted_by(column)) { (title) }
            }
        }
    }
}

/// Returns the table. On a narrow screen its rows are cards. It names its roles, because a style sheet that
/// changes `display` removes those of the elements.
fn table(view: &View, shown: &[Listed], with_tenant: bool, now: DateTime<Utc>) -> Markup {
    html! {
        div.scroll {
            table.cards role="table" aria-label="Image caches" {
                thead role="rowgroup" { tr role="row" {
                    @for (column, title) in COLUMNS {
                        @if column != "tenant" || with_tenant { (view.head(column, title)) }
                    }
                    th role="columnheader" scope="col" { "Reason" }
                } }
                tbody role="rowgroup" { @for listed in shown { (row(listed, with_tenant, now)) } }
            }
        }
    }
}

fn row(Listed { image_cache: cache, overview }: &Listed, with_tenant: bool, now: DateTime<Utc>) -> Markup {
    let cell = |title: &str, content: Markup| html! { td role="cell" data-label=(title) { (content) } };
    let build = overview.build.as_ref().filter(|_| cache.status != Status::Deleting);
    html! {
        tr role="row" {
            th role="rowheader" scope="row" {
                a #{ "c-" (cache.id) } href=(address(cache.id, overview, with_tenant)) { (cache.name) }
                div.images { (images(&cache.images)) }
            }
            @if with_tenant { (cell("Tenant", html! { (overview.tenant) })) }
            (cell("Status", status(cache.status)))
            (cell("Progress", progress(build)))
            (cell("Used / reserved", html! { (bytes(overview.used_bytes)) " / " (bytes(overview.reserved_bytes)) }))
            (cell("Age", since(overview.ordered_at, now)))
            (cell("Expires", until(overview.expires_at, now)))
            (cell("Attached", attached(overview)))
            (cell("Reason", html! { (escape_to(first_line(&reason(cache.message.as_deref(), build)), MAX_REASON)) }))
        }
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// Returns the address of the page of a cache. The tenant `admin` also sees those of other tenants.
pub(super) fn address(
    id: larder_model::image_cache::CacheId,
    overview: &Overview,
    with_tenant: bool,
) -> String {
    match with_tenant {
        true => format!("/ui/caches/{id}?tenant={}", overview.tenant),
        false => format!("/ui/caches/{id}"),
    }
}

fn images(images: &[String]) -> String {
    match images {
        [first, rest @ ..] if !rest.is_empty() => format!("{} +{}", escape(first), rest.len()),
        images => escape(&images.concat()),
    }
}

/// Returns the progress of a build as a bar and a text.
pub(super) fn progress(build: Option<&BuildOverview>) -> Markup {
    let Some(build) = build else { return html! { "–" } };
    html! {
        @if let Some(percent) = build.percent() {
            progress max="100" value=(percent) aria-hidden="true" {}
            " "
        }
        (build.describe())
    }
}

/// Returns where a cache is attached.
pub(super) fn attached(overview: &Overview) -> Markup {
    html! {
        @if overview.attached.is_empty() { "–" }
        @for place in &overview.attached {
            div {
                @match &place.at { Some(at) => code { (escape(&at.display().to_string())) }, None => "yes" }
                @let runtimes: Vec<&str> = place.runtimes.iter().map(|runtime| runtime.name()).collect();
                @if !runtimes.is_empty() { " (" (runtimes.join(", ")) ")" }
            }
        }
    }
}

/// Returns the reason for the status, or the last error of a build in progress.
pub(super) fn reason(message: Option<&str>, build: Option<&BuildOverview>) -> String {
    let attempt =
        build.and_then(|build| Some(format!("attempt {}: {}", build.attempts, build.last_error.as_ref()?)));
    message.map(str::to_owned).or(attempt).unwrap_or_default()
}
