//! Changes of all image caches of a tenant as server-sent events.
//!
//! A stream compares the overviews about once a second, and sends those that changed since the last
//! comparison. The first comparison sends all of them, so a client that reconnects misses nothing. The
//! memory of a stream is a hash for each cache.

use std::collections::{HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures_util::{StreamExt as _, stream};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::App;
use super::caller::Caller;
use super::errors::Problem;
use super::limit::Share;
use super::wire::beyond::Listed;
use crate::caches::record::Record;
use crate::caches::service::Whose;
use larder_model::image_cache::{CacheId, TenantName};

/// Pause between two comparisons.
const INTERVAL: Duration = Duration::from_secs(1);
/// Interval of keep-alive comments on a quiet stream.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A change of one cache.
#[derive(Debug)]
pub(crate) enum Change {
    /// The cache is new, or its overview changed.
    Cache(Box<Listed>),
    /// The cache is gone.
    Removed(CacheId),
}

/// The changes of all caches of a tenant, or of all tenants.
#[derive(Debug)]
pub(crate) struct Changes {
    app: Arc<App>,
    tenant: TenantName,
    all: bool,
    seen: HashMap<CacheId, [u8; 32]>,
    first: bool,
    _share: Share<TenantName>,
}

impl Changes {
    /// Creates a stream of a tenant, with the caches of all tenants if `all` is `true`.
    ///
    /// # Errors
    /// Fails if the tenant has reached its maximum number of streams.
    pub(crate) fn new(app: &Arc<App>, tenant: &TenantName, all: bool) -> Result<Self, Problem> {
        let share = app.take_stream(tenant)?;
        let (app, tenant) = (Arc::clone(app), tenant.clone());
        Ok(Changes { app, tenant, all, seen: HashMap::new(), first: true, _share: share })
    }

    /// Waits until the next comparison and returns its changes, which can be none.
    ///
    /// # Errors
    /// Fails if the records cannot be read.
    pub(crate) async fn next(&mut self) -> Result<Vec<Change>, Problem> {
        if !std::mem::take(&mut self.first) {
            tokio::time::sleep(INTERVAL).await;
        }
        let whose = if self.all { Whose::All } else { Whose::Own(&self.tenant) };
        let list = |record: &Record, overview| Listed { image_cache: record.into(), overview };
        let listed = self.app.service().overview(whose, list).await?;
        Ok(compare(&mut self.seen, listed))
    }
}

/// Returns the difference between `listed` and the caches that were `seen` last, and updates these.
fn compare(seen: &mut HashMap<CacheId, [u8; 32]>, listed: Vec<Listed>) -> Vec<Change> {
    let now: HashSet<CacheId> = listed.iter().map(|listed| listed.image_cache.id).collect();
    let gone: Vec<CacheId> = seen.keys().filter(|id| !now.contains(id)).copied().collect();
    let mut changes = Vec::new();
    for id in gone {
        seen.remove(&id);
        changes.push(Change::Removed(id));
    }
    for listed in listed {
        let hash = Sha256::digest(serde_json::to_vec(&listed).unwrap_or_default()).into();
        if seen.insert(listed.image_cache.id, hash) != Some(hash) {
            changes.push(Change::Cache(Box::new(listed)));
        }
    }
    changes
}

/// Follows all image caches of the tenant.
#[utoipa::path(get, path = "/larder/v1/events", operation_id = "WatchImageCaches", tag = "larder",
    params(("tenants" = Option<String>, Query, description = "`all` follows the caches of all tenants; only the tenant `admin` can use it")),
    responses((status = 200, description = "An event `cache` with the listed object for each image cache, and when it \
        changes; an event `removed` with the ID when it is gone", body = String, content_type = "text/event-stream")))]
pub(super) async fn events(State(app): State<Arc<App>>, caller: Caller) -> Result<Response, Problem> {
    let changes = Changes::new(&app, &caller.tenant, caller.wants_all_tenants()?)?;
    Ok(stream_of(&app, changes, |_| true, event))
}

/// Returns an answer with the changes, each as `format` returns it. It ends when `keep` returns `false` for
/// the changes of a comparison, when the records cannot be read, or when the daemon stops.
pub(crate) fn stream_of(
    app: &App,
    changes: Changes,
    mut keep: impl FnMut(&[Change]) -> bool + Send + 'static,
    format: impl Fn(&Change) -> Event + Send + 'static,
) -> Response {
    let keep = move |found: Vec<Change>| keep(&found).then_some(VecDeque::from(found));
    let events =
        stream::unfold((changes, keep, VecDeque::new()), |(mut changes, mut keep, mut queue)| async {
            while queue.is_empty() {
                queue = keep(changes.next().await.ok()?)?;
            }
            let change = queue.pop_front()?;
            Some((change, (changes, keep, queue)))
        });
    let events = events.map(move |change: Change| Ok::<_, Infallible>(format(&change)));
    let events = events.take_until(app.stop.clone().cancelled_owned());
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE).text("still here");
    // Proxies must not buffer a live stream.
    ([(header::CACHE_CONTROL, "no-store")], Sse::new(events).keep_alive(keep_alive)).into_response()
}

fn event(change: &Change) -> Event {
    let (name, json) = match change {
        Change::Cache(listed) => ("cache", serde_json::to_string(listed)),
        Change::Removed(id) => ("removed", serde_json::to_string(&json!({"id": id}))),
    };
    match json {
        Ok(json) => Event::default().event(name).data(json),
        Err(e) => Event::default().comment(e.to_string().replace(['\n', '\r'], " ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caches::record::tests::record;
    use crate::caches::service::Overview;

    fn listed(used_bytes: u64) -> Listed {
        let record = record();
        let overview = Overview {
            tenant: record.tenant.clone(),
            ordered_at: record.created_at,
            expires_at: None,
            build: None,
            used_bytes,
            reserved_bytes: 0,
            attached: Vec::new(),
        };
        Listed { image_cache: (&record).into(), overview }
    }

    fn copy(listed: &Listed) -> Listed {
        serde_json::from_value(serde_json::to_value(listed).unwrap()).unwrap()
    }

    #[test]
    fn only_changes_are_sent() {
        let (mut seen, first) = (HashMap::new(), listed(1));
        let id = first.image_cache.id;
        assert!(matches!(&compare(&mut seen, vec![copy(&first)])[..], [Change::Cache(_)]));
        assert!(compare(&mut seen, vec![copy(&first)]).is_empty());
        let mut grown = copy(&first);
        grown.overview.used_bytes = 2;
        assert!(matches!(&compare(&mut seen, vec![grown])[..], [Change::Cache(_)]));
        assert!(matches!(&compare(&mut seen, Vec::new())[..], [Change::Removed(gone)] if *gone == id));
        assert!(seen.is_empty());
    }
}
