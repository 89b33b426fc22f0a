//! Creating an image cache, with its plan.

use std::collections::HashSet;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use super::Ui;
use super::form::Form;
use super::guard::{Posted, Visitor};
use super::layout::{Main, Menu, token};
use super::respond::{go_to, page as respond_with, with_page};
use super::text::{bytes, lines};
use crate::api::errors::Problem;
use crate::api::wire::BuildingConfig;
use crate::api::wire::order::CreateRequest;
use larder_model::digest::Digest;
use larder_model::escape::escape;
use larder_model::image_cache::spec::{MAX_IMAGES, MAX_RETENTION_DAYS, MAX_SIZE_GIB, MIN_SIZE_GIB};
use larder_model::image_cache::{CacheId, Spec, TenantName};
use larder_model::plan_report::PlanReport;
use larder_model::sizing::FACTOR;

/// A plan, and the bytes of its layers that caches of the tenant already have.
#[derive(Debug)]
struct Planned {
    report: PlanReport,
    here: u64,
}

/// The state of the form below the fields.
enum Below<'a> {
    Nothing,
    Plan(&'a Planned),
    Problem(&'a Problem),
}

/// Shows the form without a plan.
pub(super) async fn page(State(ui): State<Arc<Ui>>, visitor: Visitor) -> Response {
    let form = visitor.query.clone();
    main(&ui, &visitor, &form, &Below::Nothing).answer(&visitor)
}

/// Creates a cache and leads to its page.
pub(super) async fn create(State(ui): State<Arc<Ui>>, posted: Posted) -> Response {
    let Posted { visitor, form } = posted;
    let create = async {
        let spec = spec(&ui, &form, form.get("name").to_owned())?;
        Ok(ui.app.service().create(&visitor.tenant, spec, None).await?)
    };
    match create.await {
        Ok(record) => go_to(&format!("/ui/caches/{}", record.id)),
        Err(problem) => refused(&ui, &visitor, &form, problem),
    }
}

/// Shows the plan of a cache: the whole page, or only the plan for the script.
pub(super) async fn plan(State(ui): State<Arc<Ui>>, posted: Posted) -> Response {
    let Posted { visitor, form } = posted;
    match make_plan(&ui, &visitor.tenant, &form).await {
        Ok(planned) if visitor.is_fragment => respond_with(below(&Below::Plan(&planned))),
        Ok(planned) => main(&ui, &visitor, &form, &Below::Plan(&planned)).answer(&visitor),
        Err(problem) => refused(&ui, &visitor, &form, problem),
    }
}

/// Returns the form with a problem.
fn refused(ui: &Ui, visitor: &Visitor, form: &Form, problem: Problem) -> Response {
    let shown = Below::Problem(&problem);
    let markup = match visitor.is_fragment {
        true => below(&shown),
        false => main(ui, visitor, form, &shown).whole(visitor),
    };
    with_page(problem, markup)
}

async fn make_plan(ui: &Ui, tenant: &TenantName, form: &Form) -> Result<Planned, Problem> {
    // A plan needs no name of its own.
    let spec = spec(ui, form, format!("plan-{}", CacheId::random()))?;
    let _share = ui.app.take_plan(tenant)?;
    let report = ui.app.service().plan(tenant, spec).await?;
    let records = ui.app.service().records_of(tenant).await?;
    let contents = records.iter().filter_map(|stored| stored.record.content.as_ref());
    let have: HashSet<&Digest> =
        contents.flat_map(|content| &content.layers).map(|layer| &layer.blob).collect();
    let mut counted = HashSet::new();
    let layers = report.images.iter().flat_map(|image| &image.layers);
    let here = layers.filter(|layer| have.contains(&layer.digest) && counted.insert(&layer.digest));
    let here = here.map(|layer| layer.size).fold(0, u64::saturating_add);
    Ok(Planned { here, report })
}

/// Reads the order. Each line of a list is one item.
fn spec(ui: &Ui, form: &Form, name: String) -> Result<Spec, Problem> {
    let items = |field: &str| {
        let lines = form.get(field).split_whitespace();
        lines.map(str::to_owned).collect::<Vec<String>>()
    };
    let number = |field: &str, default: u32| match form.get(field) {
        "" => Ok(default),
        text => text.parse().map_err(|_| Problem::invalid(format!("{field}: want a number"))),
    };
    let cluster = match form.get("cluster") {
        "" => cluster(ui),
        given => given.to_owned(),
    };
    let order = CreateRequest {
        name,
        images: items("images"),
        image_cache_size: number("image_cache_size", MIN_SIZE_GIB)?,
        retention_days: number("retention_days", 0)?,
        building_config: BuildingConfig { cluster, image_pull_secrets: items("image_pull_secrets") },
    };
    order.into_spec()
}

/// Returns the cluster that the form names by default.
fn cluster(ui: &Ui) -> String {
    ui.app.service().default_cluster().unwrap_or_else(|| "local".to_owned())
}

fn main(ui: &Ui, visitor: &Visitor, form: &Form, shown: &Below<'_>) -> Main {
    let content = html! {
        h1 { "Create an image cache" }
        form #create.card method="post" action="/ui/create" data-plan="/ui/plan" {
            (token(visitor))
            (fields(form, &cluster(ui)))
            div.actions {
                button.primary { "Create" }
                // The form of a plan needs no name.
                button #do-plan formaction="/ui/plan" formnovalidate { "Show the plan" }
            }
        }
        section #plan aria-live="polite" aria-label="Plan" { (below(shown)) }
    };
    Main { title: "Create an image cache".into(), menu: Menu::Create, live: None, content }
}

fn fields(form: &Form, cluster: &str) -> Markup {
    let value = |field: &str, default: &str| match form.get(field) {
        "" => default.to_owned(),
        given => given.to_owned(),
    };
    let size = MIN_SIZE_GIB.to_string();
    html! {
        label for="name" { "Name" }
        input #name name="name" value=(form.get("name")) required maxlength="128" pattern="[a-z]([a-z0-9\\-]*[a-z0-9])?"
            aria-describedby="name-help" autocomplete="off" spellcheck="false";
        p #name-help.help { "a-z, 0-9 and -, starting with a letter" }
        label for="images" { "Images" }
        textarea #images name="images" required rows="4" aria-describedby="images-help" spellcheck="false" {
            (form.get("images"))
        }
        p #images-help.help { "1 to " (MAX_IMAGES) ", each on its own line, for example nginx:1.27" }
        label for="size" { "Size of the volume, GiB" }
        input #size name="image_cache_size" type="number" min=(MIN_SIZE_GIB) max=(MAX_SIZE_GIB)
            value=(value("image_cache_size", &size)) required;
        label for="days" { "Days until it expires; 0 means never" }
        input #days name="retention_days" type="number" min="0" max=(MAX_RETENTION_DAYS)
            value=(value("retention_days", "0")) required;
        details {
            summary { "Cluster and pull secrets" }
            label for="cluster" { "UID of the cluster" }
            input #cluster name="cluster" value=(value("cluster", cluster)) spellcheck="false";
            label for="secrets" { "Pull secrets, namespace:name, each on its own line" }
            textarea #secrets name="image_pull_secrets" rows="2" spellcheck="false" { (form.get("image_pull_secrets")) }
        }
    }
}

fn below(shown: &Below<'_>) -> Markup {
    html! {
        @match shown {
            Below::Nothing => {},
            Below::Problem(problem) => div.problem { (lines(problem.message())) },
            Below::Plan(planned) => (plan_of(planned)),
        }
    }
}

fn plan_of(Planned { report, here }: &Planned) -> Markup {
    let fits = report.fits == Some(true);
    html! {
        h2 { "Plan" }
        p { strong {
            @if fits { "It fits." } @else { "It does not fit: choose a larger size." }
        } }
        dl {
            dt { "To fetch" } dd { (bytes(report.distinct_bytes.saturating_sub(*here))) }
            dt { "Already here" } dd { (bytes(*here)) ", in other caches of this tenant" }
            dt { "Shared between the images" } dd { (bytes(report.shared_bytes)) }
            dt { "Required size" } dd { (report.admission.need) ", " (FACTOR) " times the compressed images; "
                (report.admission.have) " given" }
        }
        div.scroll tabindex="0" role="region" aria-label="Images of the plan" {
            table {
                thead { tr { @for head in ["Image", "Layers", "Compressed", "Manifest"] { th scope="col" { (head) } } } }
                tbody {
                    @for image in &report.images {
                        tr {
                            th scope="row" { (escape(&image.reference)) }
                            td { (image.layers.len()) }
                            td { (bytes(image.compressed_size)) }
                            td { code { (image.manifest) } }
                        }
                    }
                }
            }
        }
    }
}
