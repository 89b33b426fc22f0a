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
use super::respond::{failed, go_to, page as respond_with, with_page};
use super::text::{bytes, lines};
use crate::api::errors::Problem;
use crate::api::wire::BuildingConfig;
use crate::api::wire::order::CreateRequest;
use larder_model::digest::Digest;
use larder_model::escape::escape;
use larder_model::image_cache::spec::{MAX_IMAGES, MAX_RETENTION_DAYS, MAX_SIZE_GIB, MIN_SIZE_GIB};
use larder_model::image_cache::{CacheId, Spec};
use larder_model::plan_report::PlanReport;
use larder_model::sizing::FACTOR;

/// Name of the cluster if an order can name any.
const ANY_CLUSTER: &str = "local";

/// A plan, and the bytes of its layers that caches of the tenant already have.
#[derive(Debug)]
struct Planned {
    report: PlanReport,
    here: u64,
}

/// The content of the section next to the form.
enum Shown<'a> {
    Nothing,
    Plan(&'a Planned),
    Problem(&'a Problem),
}

/// The form as a visitor filled it.
struct Filled {
    visitor: Visitor,
    form: Form,
    /// The cluster that is meant if the form names none. `None` if the visitor must name one.
    cluster: Option<String>,
}

/// Shows the form without a plan.
pub(super) async fn page(State(ui): State<Arc<Ui>>, visitor: Visitor) -> Response {
    let form = visitor.query.clone();
    match Filled::new(&ui, visitor, form).await {
        Ok(filled) => filled.main(&Shown::Nothing).answer(&filled.visitor),
        Err(problem) => failed(problem),
    }
}

/// Creates a cache and leads to its page.
pub(super) async fn create(State(ui): State<Arc<Ui>>, posted: Posted) -> Response {
    let filled = match Filled::new(&ui, posted.visitor, posted.form).await {
        Ok(filled) => filled,
        Err(problem) => return failed(problem),
    };
    let create = async {
        let spec = filled.spec(filled.form.get("name").to_owned())?;
        Ok(ui.app.service().create(&filled.visitor.tenant, spec, None).await?)
    };
    match create.await {
        Ok(record) => go_to(&format!("/ui/caches/{}", record.id)),
        Err(problem) => filled.refused(problem),
    }
}

/// Shows the plan of a cache: the whole page, or only the plan for the script.
pub(super) async fn plan(State(ui): State<Arc<Ui>>, posted: Posted) -> Response {
    let filled = match Filled::new(&ui, posted.visitor, posted.form).await {
        Ok(filled) => filled,
        Err(problem) => return failed(problem),
    };
    match make_plan(&ui, &filled).await {
        Ok(planned) if filled.visitor.is_fragment => respond_with(section(&Shown::Plan(&planned))),
        Ok(planned) => filled.main(&Shown::Plan(&planned)).answer(&filled.visitor),
        Err(problem) => filled.refused(problem),
    }
}

async fn make_plan(ui: &Ui, filled: &Filled) -> Result<Planned, Problem> {
    // A plan needs no name of its own.
    let spec = filled.spec(format!("plan-{}", CacheId::random()))?;
    let tenant = &filled.visitor.tenant;
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

/// Returns the cluster that a visitor means without naming one. A tenant learns no UID of the configuration
/// from it: only that of its own newest cache.
async fn known_cluster(ui: &Ui, visitor: &Visitor) -> Result<Option<String>, Problem> {
    let service = ui.app.service();
    match service.default_cluster() {
        None => Ok(Some(ANY_CLUSTER.to_owned())),
        first if visitor.is_admin() => Ok(first),
        Some(_) => {
            let records = service.records_of(&visitor.tenant).await?;
            Ok(records.last().map(|stored| stored.record.spec.cluster.clone()))
        }
    }
}

impl Filled {
    async fn new(ui: &Ui, visitor: Visitor, form: Form) -> Result<Self, Problem> {
        let cluster = known_cluster(ui, &visitor).await?;
        Ok(Filled { visitor, form, cluster })
    }

    /// Reads the order. Each line of a list is one item.
    fn spec(&self, name: String) -> Result<Spec, Problem> {
        let items = |field: &str| {
            let lines = self.form.get(field).split_whitespace();
            lines.map(str::to_owned).collect::<Vec<String>>()
        };
        let number = |field: &str, default: u32| match self.form.get(field) {
            "" => Ok(default),
            text => text.parse().map_err(|_| Problem::invalid(format!("{field}: want a number"))),
        };
        let cluster = match (self.form.get("cluster"), &self.cluster) {
            ("", Some(known)) => known.clone(),
            ("", None) => return Err(Problem::invalid("enter the UID of the cluster")),
            (given, _) => given.to_owned(),
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

    /// Returns the form with a problem.
    fn refused(&self, problem: Problem) -> Response {
        let shown = Shown::Problem(&problem);
        let markup = match self.visitor.is_fragment {
            true => section(&shown),
            false => self.main(&shown).whole(&self.visitor),
        };
        with_page(problem, markup)
    }

    fn main(&self, shown: &Shown<'_>) -> Main {
        let content = html! {
            h1 { "Create an image cache" }
            div.split {
                form #create.card method="post" action="/ui/create" data-plan="/ui/plan" {
                    (token(&self.visitor))
                    (fields(&self.form, self.cluster.as_deref()))
                    div.actions {
                        button.primary { "Create" }
                        // The form of a plan needs no name.
                        button #do-plan formaction="/ui/plan" formnovalidate { "Show the plan" }
                    }
                }
                section #plan aria-live="polite" aria-label="Plan" { (section(shown)) }
            }
        };
        Main { title: "Create an image cache".into(), menu: Menu::Create, live: None, content }
    }
}

fn fields(form: &Form, cluster: Option<&str>) -> Markup {
    let value = |field: &str, default: &str| match form.get(field) {
        "" => default.to_owned(),
        given => given.to_owned(),
    };
    let size = MIN_SIZE_GIB.to_string();
    let cluster_field = html! {
        label for="cluster" { "UID of the cluster" }
        input #cluster name="cluster" value=(value("cluster", cluster.unwrap_or_default()))
            required[cluster.is_none()] spellcheck="false";
    };
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
        @if cluster.is_none() { (cluster_field) }
        details {
            summary { @if cluster.is_some() { "Cluster and pull secrets" } @else { "Pull secrets" } }
            @if cluster.is_some() { (cluster_field) }
            label for="secrets" { "Pull secrets, namespace:name, each on its own line" }
            textarea #secrets name="image_pull_secrets" rows="2" spellcheck="false" { (form.get("image_pull_secrets")) }
        }
    }
}

fn section(shown: &Shown<'_>) -> Markup {
    html! {
        @match shown {
            Shown::Nothing => {},
            Shown::Problem(problem) => div.problem { (lines(problem.message())) },
            Shown::Plan(planned) => (plan_of(planned)),
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
