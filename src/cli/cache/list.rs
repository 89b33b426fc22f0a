//! Lists of image caches: `larder cache ls` and `larder ls`.

use chrono::{DateTime, Utc};
use reqwest::Method;

use super::Error;
use crate::api::wire::beyond::{Host, Listed, Overviews};
use crate::caches::service::{BuildOverview, Overview};
use crate::cli::args::ListFormat;
use crate::cli::table::{bytes, rfc3339, rows};
use crate::client::{Answer, Client, Request};
use larder_model::age::age;
use larder_model::escape::escape;
use larder_model::image_cache::Status;

/// The caches to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Scope {
    /// The caches of the caller.
    Own,
    /// The caches of all tenants, each with its tenant.
    AllTenants,
}

/// Requests the caches in `scope`, or only those of this `name`.
pub(in crate::cli) async fn request(
    client: &Client,
    scope: Scope,
    name: Option<&str>,
) -> Result<Answer, Error> {
    let mut query: Vec<(&str, &str)> = name.iter().map(|name| ("name", *name)).collect();
    if scope == Scope::AllTenants {
        query.push(("tenants", "all"));
    }
    let request = Request { query: &query, ..Request::new(Method::GET, "/larder/v1/caches") };
    Ok(client.call(request).await?)
}

/// Requests the host. `None` if only root can read it.
pub(in crate::cli) async fn host(client: &Client) -> Result<Option<Host>, Error> {
    match client.call(Request::new(Method::GET, "/larder/v1/host")).await {
        Ok(answer) => Ok(Some(answer.read()?)),
        Err(error) if error.is_forbidden() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Formats the names, one per line.
pub(in crate::cli) fn names(answer: &Overviews) -> String {
    answer.image_caches.iter().map(|listed| format!("{}\n", listed.image_cache.name)).collect()
}

/// Formats a table that is at most `width` columns wide. The wide format is not cut.
pub(in crate::cli) fn table(
    answer: &Overviews,
    format: ListFormat,
    scope: Scope,
    now: DateTime<Utc>,
    width: Option<usize>,
) -> String {
    let wide = format == ListFormat::Wide;
    let mut head = vec!["NAME", "STATUS", "PROGRESS", "USED/SIZE", "AGE", "IMAGES"];
    if wide {
        head.extend(["EXPIRES", "ATTACHED", "ID"]);
    }
    head.push("MESSAGE");
    if scope == Scope::AllTenants {
        head.insert(0, "TENANT");
    }
    let row = |listed: &Listed| {
        let mut row = short(listed, now, wide);
        if wide {
            row.extend(more(listed));
        }
        row.push(message(listed));
        if scope == Scope::AllTenants {
            row.insert(0, listed.overview.tenant.to_string());
        }
        row
    };
    let lines: Vec<Vec<String>> = answer.image_caches.iter().map(row).collect();
    rows(&head, &lines, width.filter(|_| !wide))
}

/// Returns the columns that every table has.
fn short(Listed { image_cache, overview }: &Listed, now: DateTime<Utc>, all_images: bool) -> Vec<String> {
    let images = match image_cache.images.as_slice() {
        [first, rest @ ..] if !rest.is_empty() && !all_images => format!("{} +{}", escape(first), rest.len()),
        images => escape(&images.join(",")),
    };
    vec![
        image_cache.name.to_string(),
        image_cache.status.to_string(),
        progress(image_cache.status, overview.build.as_ref()),
        format!("{}/{} GiB", bytes(overview.used_bytes), image_cache.image_cache_size),
        age(overview.ordered_at, now),
        images,
    ]
}

/// Returns the further columns of a wide table.
fn more(Listed { image_cache, overview }: &Listed) -> Vec<String> {
    vec![
        overview.expires_at.map_or_else(|| "never".to_owned(), rfc3339),
        attached(overview),
        image_cache.id.to_string(),
    ]
}

/// Formats where a cache is attached.
pub(super) fn attached(overview: &Overview) -> String {
    let places = overview.attached.iter().map(|place| {
        let at = place.at.as_ref().map_or_else(|| "yes".to_owned(), |at| at.display().to_string());
        let runtimes: Vec<&str> = place.runtimes.iter().map(|runtime| runtime.name()).collect();
        if runtimes.is_empty() { escape(&at) } else { format!("{} ({})", escape(&at), runtimes.join(",")) }
    });
    let places: Vec<String> = places.collect();
    if places.is_empty() { "-".to_owned() } else { places.join(", ") }
}

/// Formats how far a build is.
fn progress(status: Status, build: Option<&BuildOverview>) -> String {
    let build = build.filter(|_| status != Status::Deleting);
    build.map_or_else(|| "-".to_owned(), BuildOverview::describe)
}

/// Returns the reason for the status, or the attempt and the last error of a build, in one line.
pub(super) fn message(Listed { image_cache, overview }: &Listed) -> String {
    let attempt = overview.build.as_ref().and_then(last_error);
    let text = image_cache.message.clone().or(attempt).unwrap_or_default();
    escape(text.lines().next().unwrap_or_default())
}

/// Formats the attempt of a build after a failed one.
pub(super) fn last_error(build: &BuildOverview) -> Option<String> {
    let error = build.last_error.as_ref()?;
    Some(format!("attempt {}: {error}", build.attempts))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use larder_model::image_cache::CacheId;

    const ID: &str = "2f0c9f2a-4c1b-4f0e-8a53-5d1a1d0d9a11";

    fn listed(name: &str, status: &str, images: &[&str], overview: Value) -> Value {
        let mut all = json!({
            "tenant": "team-a", "ordered_at": "2026-01-01T00:00:00Z", "used_bytes": 3 << 29,
            "reserved_bytes": 20u64 << 30, "attached": [],
        });
        all.as_object_mut().unwrap().extend(overview.as_object().unwrap().clone());
        json!({
            "name": name, "id": ID, "created_at": "", "images": images, "image_cache_size": 20,
            "retention_days": 0, "building_config": {"cluster": "c"}, "status": status, "overview": all,
        })
    }

    fn answer() -> Overviews {
        let build = json!({"build": {
            "attempts": 2, "last_error": "connection refused", "refreshing": false, "received": 43,
            "fetch_bytes": 100, "layers_done": 1, "layers": 3,
        }});
        let attached = json!({"attached": [
            {"generation": 1, "since": "2026-01-01T00:00:00Z", "runtimes": ["podman"], "at": "/icv"},
        ]});
        let caches = [
            listed("web", "Available", &["nginx:1.27", "redis:7"], attached),
            listed("ml", "Creating", &["a\u{1b}[2J"], build),
        ];
        serde_json::from_value(json!({"image_caches": caches})).unwrap()
    }

    fn at(answer: &Overviews, format: ListFormat, scope: Scope, width: Option<usize>) -> String {
        let now = "2026-01-04T00:00:00Z".parse().unwrap();
        table(answer, format, scope, now, width)
    }

    #[test]
    fn a_list_fits_the_terminal_and_no_control_character_reaches_it() {
        let text = at(&answer(), ListFormat::Text, Scope::Own, Some(85));
        assert_eq!(
            text,
            "NAME  STATUS     PROGRESS  USED/SIZE        AGE  IMAGES         MESSAGE\n\
             web   Available  -         1.50 GiB/20 GiB  3d   nginx:1.27 +1\n\
             ml    Creating   43%       1.50 GiB/20 GiB  3d   a\\u{1b}[2J     attempt 2: connectio…\n"
        );
        assert!(text.lines().all(|line| line.chars().count() <= 85));
    }

    #[test]
    fn a_wide_list_has_all_columns() {
        let text = at(&answer(), ListFormat::Wide, Scope::AllTenants, Some(80));
        let id: CacheId = ID.parse().unwrap();
        assert!(text.starts_with("TENANT  NAME  STATUS"), "{text}");
        assert!(text.contains("nginx:1.27,redis:7") && text.contains(&id.to_string()), "{text}");
        assert!(text.contains("/icv (podman)") && text.contains("attempt 2: connection refused"), "{text}");
        assert_eq!(names(&answer()), "web\nml\n");
    }

    #[test]
    fn progress_of_builds() {
        let build = |attempts, fetch_bytes: Option<u64>, refreshing| BuildOverview {
            attempts,
            last_error: None,
            refreshing,
            received: 5,
            fetch_bytes,
            layers_done: 1,
            layers: if attempts == 1 { 0 } else { 4 },
        };
        let of = |build: &BuildOverview| progress(Status::Creating, Some(build));
        assert_eq!(of(&build(0, None, false)), "queued");
        assert_eq!(of(&build(1, None, false)), "planning");
        assert_eq!(of(&build(2, None, false)), "1/4 layers");
        assert_eq!(of(&build(2, Some(0), false)), "25%");
        assert_eq!(of(&build(2, Some(10), true)), "refresh 50%");
        assert_eq!(progress(Status::Available, None), "-");
    }
}
