//! Waiting for an image cache, and printing its events.

use std::time::Duration;

use chrono::Utc;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::{Error, get};
use crate::caches::progress::LayerState;
use crate::caches::record::Origin;
use crate::caches::service::LayerDetails;
use crate::cli::output::terminal::Terminal;
use crate::cli::output::text::Text;
use crate::cli::output::{Renderer, stdout};
use crate::client::events::StreamEvent;
use crate::client::{Client, Request};
use crate::telemetry::Console;
use larder_model::class::Class;
use larder_model::escape::escape;
use larder_model::event::{Event, Line, VERSION};

/// Delay between two requests for a cache whose event stream ended early.
const PAUSE: Duration = Duration::from_secs(1);

/// Maximum time to retry while the daemon is unreachable, for example during a restart.
const AWAY: Duration = Duration::from_secs(60);

/// The status to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Built, or refreshed.
    Available,
    /// Deleted.
    Gone,
}

/// Waits until the cache reaches `wanted`, or can no longer reach it. Returns the daemon's last answer.
pub(super) async fn until(
    client: &Client,
    id: &str,
    wanted: Wanted,
    limit: Option<Duration>,
    console: &Console,
) -> Result<Value, Error> {
    let mut renderer: Box<dyn Renderer> = if console.is_terminal() {
        Box::new(Terminal::new(console.clone()))
    } else {
        Box::new(Text(console.clone()))
    };
    let waiting = wait(client, id, wanted, &mut *renderer);
    let Some(limit) = limit else { return waiting.await };
    timeout(limit, waiting).await.unwrap_or_else(|_| {
        let message = "not done before --timeout; the daemon continues".to_owned();
        Err(Error::Ended { name: id.to_owned(), class: Class::Busy, message })
    })
}

async fn wait(
    client: &Client,
    id: &str,
    wanted: Wanted,
    renderer: &mut dyn Renderer,
) -> Result<Value, Error> {
    let path = format!("/larder/v1/caches/{id}");
    let mut last = json!({"image_cache": {"id": id}});
    let (mut sequence, mut answered) = (0, false);
    loop {
        let answer = match look(client, &path, answered).await {
            Err(error) if error.is_not_found() && wanted == Wanted::Gone => return Ok(last),
            other => other?,
        };
        if !answered {
            join(&answer["details"], renderer);
        }
        answered = true;
        last = json!({"image_cache": answer["image_cache"]});
        if let Some(end) = ended(&answer, wanted) {
            return end.map(|()| last);
        }
        // Status events are numbered, so each is shown once. Builder events have no number.
        if let Ok(mut events) = client.follow(id, sequence).await {
            while let Some(told) = events.next().await {
                match told {
                    StreamEvent::Status { sequence: number, .. } => sequence = number,
                    StreamEvent::Build(line) => {
                        // A closed terminal must not end the wait.
                        let _ = renderer.show(&line);
                    }
                }
            }
            let answer = client.call(Request::new(get(), &path)).await;
            if answer.is_ok_and(|answer| ended(&answer, wanted).is_some()) {
                continue;
            }
        }
        sleep(PAUSE).await;
    }
}

/// Requests the details of a cache. If the daemon `answered` before, retries while it is unreachable.
async fn look(client: &Client, path: &str, answered: bool) -> Result<Value, crate::client::error::Error> {
    let deadline = Instant::now() + AWAY;
    loop {
        match client.call(Request::new(get(), path)).await {
            Err(error) if answered && passes(&error) && Instant::now() < deadline => sleep(PAUSE).await,
            answer => return answer,
        }
    }
}

/// Reports whether a retry might succeed.
fn passes(error: &crate::client::error::Error) -> bool {
    matches!(error.class(), Class::Transient | Class::Busy)
}

/// Shows the running layers of a build that started before this client connected.
fn join(details: &Value, renderer: &mut dyn Renderer) {
    let Some(mut rest) = details["fetch_bytes"].as_u64() else { return };
    let layers = details["layers"].as_array().into_iter().flatten();
    let layers: Vec<LayerDetails> =
        layers.filter_map(|layer| serde_json::from_value(layer.clone()).ok()).collect();
    for layer in layers.iter().filter(|layer| layer.origin == Origin::Fetched) {
        if layer.state == LayerState::Committed {
            rest = rest.saturating_sub(layer.compressed_size);
        }
    }
    renderer.join(rest);
    for layer in layers.into_iter().filter(|layer| layer.state == LayerState::Running) {
        let LayerDetails { blob, compressed_size, images, from, received, .. } = layer;
        let from = from.map(|id| id.to_string());
        let started = Event::LayerStarted { blob: blob.clone(), compressed_size, images, from };
        for event in [started, Event::LayerProgress { blob, received, written: 0 }] {
            let _ = renderer.show(&Line { v: VERSION, time: Utc::now(), event });
        }
    }
}

/// Returns the final result, or `None` if the cache can still change.
fn ended(answer: &Value, wanted: Wanted) -> Option<Result<(), Error>> {
    let (cache, details) = (&answer["image_cache"], &answer["details"]);
    let text = |value: &Value| escape(value.as_str().unwrap_or_default());
    let fail = |class: Class| {
        let message = match cache["message"].as_str() {
            Some(message) => escape(message),
            None => format!("it is {}", text(&cache["status"])),
        };
        Some(Err(Error::Ended { name: text(&cache["name"]), class, message }))
    };
    let class = || serde_json::from_value(details["class"].clone()).unwrap_or(Class::Internal);
    match (cache["status"].as_str().unwrap_or_default(), wanted) {
        (_, Wanted::Gone) | ("Creating", _) => None,
        ("Available", _) if details["refreshing"] == true => None,
        // The old content is still available, but the awaited refresh failed.
        ("Available", _) if !details["class"].is_null() => fail(class()),
        ("Available", _) => Some(Ok(())),
        ("Failed", _) => fail(class()),
        ("Deleting", _) => fail(Class::NotFound),
        _ => fail(Class::Conflict),
    }
}

/// Prints the events of a cache until it reaches a final status. If the daemon stops or this reader is too
/// slow, the stream is cut and then resumed; builder events in between are lost.
pub(super) async fn print(client: &Client, id: &str, as_json: bool, console: &Console) -> Result<(), Error> {
    let path = format!("/larder/v1/caches/{id}");
    let mut text = Text(console.clone());
    let (mut sequence, mut answered) = (0, false);
    loop {
        match client.follow(id, sequence).await {
            Ok(mut events) => {
                while let Some(told) = events.next().await {
                    if let StreamEvent::Status { sequence: number, .. } = &told {
                        sequence = *number;
                    }
                    print_one(told, as_json, &mut text, console);
                }
            }
            Err(error) if answered && passes(&error) => {}
            Err(error) if answered && error.is_not_found() => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        answered = true;
        let answer = match look(client, &path, answered).await {
            Err(error) if error.is_not_found() => return Ok(()),
            other => other?,
        };
        if settled(&answer) && last_event(&answer) <= sequence {
            return Ok(());
        }
        sleep(PAUSE).await;
    }
}

fn print_one(told: StreamEvent, as_json: bool, text: &mut Text, console: &Console) {
    match told {
        StreamEvent::Status { json, .. } if as_json => {
            stdout::print(console, &format!("{json}\n"));
        }
        StreamEvent::Status { json, .. } => {
            let status: Value = serde_json::from_str(&json).unwrap_or_default();
            let field = |name: &str| escape(status[name].as_str().unwrap_or_default());
            let line = format!("{}  {:<11}  {}\n", field("time"), field("status"), field("message"));
            stdout::print(console, &line);
        }
        StreamEvent::Build(line) if as_json => {
            if let Ok(json) = serde_json::to_string(&line) {
                stdout::print(console, &format!("{json}\n"));
            }
        }
        StreamEvent::Build(line) => {
            let _ = text.show(&line);
        }
    }
}

/// Reports whether nothing changes until the next request or the next scheduled action.
fn settled(answer: &Value) -> bool {
    let at_work = answer["details"]["refreshing"] == true;
    !at_work && !matches!(answer["image_cache"]["status"].as_str(), Some("Creating" | "Deleting"))
}

/// Returns the sequence number of the last event.
fn last_event(answer: &Value) -> u64 {
    let events = answer["details"]["events"].as_array();
    events.and_then(|events| events.last()?["sequence"].as_u64()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends() {
        let of = |status: &str, details: Value, wanted: Wanted| {
            let answer = json!({"image_cache": {"name": "web", "status": status}, "details": details});
            ended(&answer, wanted).map(|end| end.map_err(|error| error.class()))
        };
        let plain = || json!({"refreshing": false});
        assert_eq!(of("Creating", plain(), Wanted::Available), None);
        assert_eq!(of("Available", plain(), Wanted::Available), Some(Ok(())));
        assert_eq!(of("Available", json!({"refreshing": true}), Wanted::Available), None);
        let failed = json!({"refreshing": false, "class": "not_found"});
        assert_eq!(of("Available", failed.clone(), Wanted::Available), Some(Err(Class::NotFound)));
        assert_eq!(of("Failed", failed, Wanted::Available), Some(Err(Class::NotFound)));
        assert_eq!(of("Deleting", plain(), Wanted::Available), Some(Err(Class::NotFound)));
        assert_eq!(of("Unavailable", plain(), Wanted::Available), Some(Err(Class::Conflict)));
        assert_eq!(of("Deleting", plain(), Wanted::Gone), None);
    }
}
