//! Live progress of one image cache as server-sent events (WHATWG HTML, 9.2).
//!
//! `event: status` is an event of the record and has its number as `id`, so a client that reconnects with
//! `Last-Event-ID` misses none. `event: build` is the builder's output; it has no number and is not repeated.
//! The stream ends when no more events are expected, when the client is too slow, or when the daemon stops.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::{StreamExt as _, stream};

use super::App;
use super::caller::Caller;
use super::errors::Problem;
use crate::caches::hub::Notification;

/// Interval of keep-alive comments on a quiet stream.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Follows an image cache until it is settled.
#[utoipa::path(get, path = "/larder/v1/caches/{id}/events", operation_id = "WatchImageCache", tag = "larder",
    params(("id" = uuid::Uuid, Path),
        ("Last-Event-ID" = Option<u64>, Header, description = "Number of the last event that the client has")),
    responses((status = 200, description = "Events `status` and `build` with JSON data", body = String,
        content_type = "text/event-stream")))]
pub(super) async fn events(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<impl IntoResponse, Problem> {
    let id = caller.cache()?;
    let after = caller.last_event()?;
    let share = app.take_stream(&caller.tenant)?;
    let watch = app.parts.service.watch(&caller.tenant, id, after).await?;
    let notifications = stream::unfold((watch, share), |(mut watch, share)| async {
        let notification = watch.next().await?;
        Some((notification, (watch, share)))
    });
    let stop = app.stop.clone().cancelled_owned();
    let events = notifications.map(|notification| Ok::<_, Infallible>(event(&notification))).take_until(stop);
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE).text("still here");
    // Proxies must not buffer a live stream.
    Ok(([(header::CACHE_CONTROL, "no-store")], Sse::new(events).keep_alive(keep_alive)))
}

fn event(notification: &Notification) -> Event {
    let (event, json) = match notification {
        Notification::CacheEvent(happened) => {
            let event = Event::default().event("status").id(happened.sequence.to_string());
            (event, serde_json::to_string(happened))
        }
        Notification::Build(line) => (Event::default().event("build"), serde_json::to_string(line)),
    };
    match json {
        Ok(json) => event.data(json),
        Err(e) => event.comment(e.to_string().replace(['\n', '\r'], " ")),
    }
}
