//! `larder cache report`: one cache as a file to send.

use std::path::Path;

use reqwest::Method;

use super::{Error, resolve};
use crate::api::wire::beyond::{BuildTimeline, Detailed};
use crate::cli::table::bytes;
use crate::cli::table::rfc3339;
use crate::client::{Client, Request};
use crate::waterfall::file;

/// Writes the page of a cache.
pub(super) async fn write(client: &Client, cache: &str, path: &Path) -> Result<(), Error> {
    let id = resolve(client, cache).await?;
    let at = format!("/larder/v1/caches/{id}");
    let detailed: Detailed = client.call(Request::new(Method::GET, &at)).await?.read()?;
    let BuildTimeline { timeline, .. } =
        client.call(Request::new(Method::GET, &format!("{at}/timeline"))).await?.read()?;
    let title = format!("Image cache {}", detailed.image_cache.name);
    Ok(file::write(path, &file::page(&title, &facts(&detailed), timeline.as_deref()))?)
}

fn facts(Detailed { image_cache: cache, details, overview }: &Detailed) -> Vec<file::Fact> {
    let mut facts = vec![("Status", cache.status.to_string())];
    facts.extend(cache.message.clone().map(|message| ("Message", message)));
    facts.extend(overview.build.as_ref().map(|build| ("Build", build.describe())));
    facts.extend(
        details.images.iter().map(|image| ("Image", format!("{} ({})", image.reference, image.manifest))),
    );
    facts.push(("Size", format!("{} GiB, {} used", cache.image_cache_size, bytes(overview.used_bytes))));
    facts.push(("Created", rfc3339(overview.ordered_at)));
    facts.extend(details.sealed_at.map(|sealed| ("Sealed", rfc3339(sealed))));
    facts.extend(details.digest.as_ref().map(|digest| ("Digest", digest.to_string())));
    facts.push(("ID", cache.id.to_string()));
    facts
}
