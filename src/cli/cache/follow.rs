//! Waiting for an image cache, and seeing what happens to it.

use std::time::Duration;

use chrono::Utc;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::{Error, get};
use crate::caches::progress::LayerState;
use crate::caches::record::Origin;
use crate::caches::service::LayerDetails;
use crate::cli::output::Renderer;
use crate::cli::output::stdout;
use crate::cli::output::terminal::Terminal;
use crate::cli::output::text::Text;
use crate::client::events::StreamEvent;
use crate::client::{Client, Request};
use crate::telemetry::Console;
use larder_model::class::Class;
use larder_model::escape::escape;
use larder_model::event::{Event, Line, VERSION};

/// Between two looks at a cache of which the stream ended early.
const PAUSE: Duration = Duration::from_secs(1);

/// How long the daemon may be away, as for a restart, while somebody waits.
const AWAY: Duration = Duration::from_secs(60);

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Built, or refreshed.
    Available,
    /// Deleted.
    Gone,
}

/// Waits until the cache is what is wanted, or cannot become it any more. Gives the daemon's last answer.
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
        let message = "it is not done within the time given; the daemon goes on".to_owned();
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
        // What was told already is not told again; what the builder says has no number.
        if let Ok(mut events) = client.follow(id, sequence).await {
            while let Some(told) = events.next().await {
                match told {
                    StreamEvent::Status { sequence: number, .. } => sequence = number,
                    StreamEvent::Build(line) => {
                        // A terminal that is gone does not end the waiting.
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

/// Asks for all that is known of a cache; again and again while a daemon that `answered` before is away.
async fn look(client: &Client, path: &str, answered: bool) -> Result<Value, crate::client::error::Error> {
    let deadline = Instant::now() + AWAY;
    loop {
        match client.call(Request::new(get(), path)).await {
            Err(error) if answered && passes(&error) && Instant::now() < deadline => sleep(PAUSE).await,
            answer => return answer,
        }
    }
}

/// Whether it may be otherwise in a moment.
fn passes(error: &crate::client::error::Error) -> bool {
    matches!(error.class(), Class::Transient | Class::Busy)
}

/// Shows the layers under way of a build that began before anybody looked.
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

/// Whether there is nothing more to wait for.
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
        // The content is what it was, and the refresh that was waited for failed.
        ("Available", _) if !details["class"].is_null() => fail(class()),
        ("Available", _) => Some(Ok(())),
        ("Failed", _) => fail(class()),
        ("Deleting", _) => fail(Class::NotFound),
        _ => fail(Class::Conflict),
    }
}

/// Prints what happens to a cache until it is settled. A stream that is cut, because the daemon stops or this reader is slow,
/// is taken up where it ended; what the builder said meanwhile is lost.
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

/// Whether nothing more happens until somebody asks, or time passes.
fn settled(answer: &Value) -> bool {
    let at_work = answer["details"]["refreshing"] == true;
    !at_work && !matches!(answer["image_cache"]["status"].as_str(), Some("Creating" | "Deleting"))
}

/// The number of the last event.
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
