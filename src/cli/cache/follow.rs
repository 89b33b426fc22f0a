//! Waiting for an image cache, and printing its events.

use std::time::Duration;

use chrono::Utc;
use reqwest::Method;
use tokio::time::{Instant, sleep, timeout};

use super::Error;
use crate::api::wire::beyond::Detailed;
use crate::caches::progress::LayerState;
use crate::caches::record::{CacheEvent, Origin};
use crate::caches::service::{Details, LayerDetails};
use crate::cli::output::display::{TICK_INTERVAL, automatic};
use crate::cli::output::text::Text;
use crate::cli::output::{Renderer, stdout};
use crate::cli::table::rfc3339;
use crate::client::error::Error as ClientError;
use crate::client::events::StreamEvent;
use crate::client::{Answer, Client, Request};
use crate::telemetry::Console;
use larder_model::class::Class;
use larder_model::escape::escape;
use larder_model::event::{Event, Line, VERSION};
use larder_model::image_cache::{CacheId, Status};

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

/// Waits until the cache reaches `wanted`, or can no longer reach it. Returns the daemon's last answer about
/// the cache. `None` if the cache was already deleted.
pub(super) async fn until(
    client: &Client,
    id: CacheId,
    wanted: Wanted,
    limit: Option<Duration>,
    console: &Console,
) -> Result<Option<Answer>, Error> {
    let mut renderer = automatic(console);
    let waiting = wait(client, id, wanted, &mut *renderer);
    let Some(limit) = limit else { return waiting.await };
    timeout(limit, waiting).await.unwrap_or_else(|_| {
        let message = "not done before --timeout; the daemon continues".to_owned();
        Err(Error::Ended { name: id.to_string(), class: Class::Busy, message })
    })
}

async fn wait(
    client: &Client,
    id: CacheId,
    wanted: Wanted,
    renderer: &mut dyn Renderer,
) -> Result<Option<Answer>, Error> {
    let mut last = None;
    let mut sequence = 0;
    loop {
        let answer = match look(client, id, last.is_some()).await {
            Err(error) if error.is_not_found() && wanted == Wanted::Gone => return Ok(last),
            other => other?,
        };
        let detailed: Detailed = answer.read()?;
        if last.is_none() {
            join(&detailed.details, renderer);
        }
        // The answer of a create or a delete has no details.
        last = Some(answer.only("image_cache"));
        if let Some(end) = ended(&detailed, wanted) {
            return end.map(|()| last);
        }
        // Status events are numbered, so each is shown once. Builder events have no number.
        if let Ok(mut events) = client.follow(&id.to_string(), sequence).await {
            loop {
                let Ok(event) = timeout(TICK_INTERVAL, events.next()).await else {
                    renderer.tick();
                    continue;
                };
                match event {
                    None => break,
                    Some(StreamEvent::Status { sequence: number, .. }) => sequence = number,
                    Some(StreamEvent::Build(line)) => {
                        // A closed terminal must not end the wait.
                        let _ = renderer.show(&line);
                    }
                }
            }
            let answer = details(client, id).await.and_then(|answer| answer.read());
            if answer.is_ok_and(|detailed| ended(&detailed, wanted).is_some()) {
                continue;
            }
        }
        sleep(PAUSE).await;
    }
}

/// Requests the details of a cache. If the daemon `answered` before, retries while it is unreachable.
async fn look(client: &Client, id: CacheId, answered: bool) -> Result<Answer, ClientError> {
    let deadline = Instant::now() + AWAY;
    loop {
        match details(client, id).await {
            Err(error) if answered && passes(&error) && Instant::now() < deadline => sleep(PAUSE).await,
            answer => return answer,
        }
    }
}

async fn details(client: &Client, id: CacheId) -> Result<Answer, ClientError> {
    client.call(Request::new(Method::GET, &format!("/larder/v1/caches/{id}"))).await
}

/// Reports whether a retry might succeed.
fn passes(error: &ClientError) -> bool {
    matches!(error.class(), Class::Transient | Class::Busy)
}

/// Shows the running layers of a build that started before this client connected.
fn join(details: &Details, renderer: &mut dyn Renderer) {
    let Some(mut rest) = details.fetch_bytes else { return };
    // Layers that were already on the volume are not part of the bytes to fetch.
    let done =
        |layer: &&LayerDetails| layer.state == LayerState::Committed && layer.origin != Origin::Present;
    for layer in details.layers.iter().filter(done) {
        rest = rest.saturating_sub(layer.compressed_size);
    }
    renderer.join(rest);
    for layer in details.layers.iter().filter(|layer| layer.state == LayerState::Running) {
        let LayerDetails { blob, compressed_size, images, from, received, origin, .. } = layer.clone();
        // A layer can be reused from the volume itself.
        let from = (origin == Origin::Reused).then(|| from.map_or_else(String::new, |id| id.to_string()));
        let started = Event::LayerStarted { blob: blob.clone(), compressed_size, images, from };
        for event in [started, Event::LayerProgress { blob, received, written: 0 }] {
            let _ = renderer.show(&Line { v: VERSION, time: Utc::now(), event });
        }
    }
}

/// Returns the final result, or `None` if the cache can still change.
fn ended(answer: &Detailed, wanted: Wanted) -> Option<Result<(), Error>> {
    let Detailed { image_cache, details, .. } = answer;
    let fail = |class: Option<Class>| {
        let message = match &image_cache.message {
            Some(message) => escape(message),
            None => format!("it is {}", image_cache.status),
        };
        let class = class.unwrap_or(Class::Internal);
        Some(Err(Error::Ended { name: image_cache.name.to_string(), class, message }))
    };
    match (image_cache.status, wanted) {
        (_, Wanted::Gone) | (Status::Creating, _) => None,
        (Status::Available, _) if details.refreshing => None,
        // The old content is still available, but the awaited refresh failed.
        (Status::Available, _) if details.class.is_some() => fail(details.class),
        (Status::Available, _) => Some(Ok(())),
        (Status::Failed, _) => fail(details.class),
        (Status::Deleting, _) => fail(Some(Class::NotFound)),
        (Status::Unavailable, _) => fail(Some(Class::Conflict)),
    }
}

/// Prints the events of a cache until it reaches a final status. If the daemon stops or this reader is too
/// slow, the stream is cut and then resumed; builder events in between are lost.
pub(super) async fn print(
    client: &Client,
    id: CacheId,
    as_json: bool,
    console: &Console,
) -> Result<(), Error> {
    let mut text = Text(console.clone());
    let (mut sequence, mut answered) = (0, false);
    loop {
        match client.follow(&id.to_string(), sequence).await {
            Ok(mut events) => {
                while let Some(event) = events.next().await {
                    if let StreamEvent::Status { sequence: number, .. } = &event {
                        sequence = *number;
                    }
                    print_one(event, as_json, &mut text, console);
                }
            }
            Err(error) if answered && passes(&error) => {}
            Err(error) if answered && error.is_not_found() => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        answered = true;
        let answer: Detailed = match look(client, id, answered).await {
            Err(error) if error.is_not_found() => return Ok(()),
            other => other?.read()?,
        };
        if is_settled(&answer) && last_event(&answer) <= sequence {
            return Ok(());
        }
        sleep(PAUSE).await;
    }
}

fn print_one(event: StreamEvent, as_json: bool, text: &mut Text, console: &Console) {
    match event {
        StreamEvent::Status { json, .. } if as_json => {
            stdout::print(console, &format!("{json}\n"));
        }
        StreamEvent::Status { json, .. } => {
            // A status that this version does not know is shown as the daemon sent it.
            let line = match serde_json::from_str::<CacheEvent>(&json) {
                Ok(CacheEvent { time, status, message, .. }) => {
                    format!("{}  {status:<11}  {}\n", rfc3339(time), escape(&message))
                }
                Err(_) => escape(&json) + "\n",
            };
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
fn is_settled(answer: &Detailed) -> bool {
    let is_final = !matches!(answer.image_cache.status, Status::Creating | Status::Deleting);
    is_final && !answer.details.refreshing
}

/// Returns the sequence number of the last event.
fn last_event(answer: &Detailed) -> u64 {
    answer.details.events.last().map_or(0, |event| event.sequence)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Records the bytes to fetch and the events.
    #[derive(Default)]
    struct Recorder(u64, Vec<Event>);

    impl Renderer for Recorder {
        fn join(&mut self, fetch_bytes: u64) {
            self.0 = fetch_bytes;
        }

        fn show(&mut self, line: &Line) -> std::io::Result<()> {
            self.1.push(line.event.clone());
            Ok(())
        }
    }

    #[test]
    fn a_late_client_does_not_count_reused_layers() {
        let layer = |name: &str, state: &str, origin: &str| {
            json!({
                "blob": larder_model::digest::Digest::sha256(name.as_bytes()), "images": [], "compressed_size": 100,
                "size": 0, "received": 0, "state": state, "origin": origin, "elapsed_ms": 0,
            })
        };
        let layers = [
            layer("a", "committed", "present"),
            layer("b", "committed", "fetched"),
            layer("c", "committed", "reused"),
            layer("d", "running", "reused"),
            layer("e", "running", "fetched"),
        ];
        let details = json!({
            "refreshing": false, "attempts": 1, "fetch_bytes": 400, "images": [], "layers": layers, "events": [],
        });
        let mut recorder = Recorder::default();
        join(&serde_json::from_value(details).unwrap(), &mut recorder);
        assert_eq!(recorder.0, 200, "the layers that are running");
        let copied = recorder.1.iter().filter_map(|event| match event {
            Event::LayerStarted { from, .. } => Some(from.is_some()),
            _ => None,
        });
        assert_eq!(copied.collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn ends() {
        let of = |status: &str, mut details: Value, wanted: Wanted| {
            for (field, value) in [("attempts", json!(1)), ("images", json!([])), ("layers", json!([]))] {
                details[field] = value;
            }
            details["events"] = json!([]);
            let cache = json!({
                "name": "web", "id": CacheId::random(), "created_at": "", "images": [], "image_cache_size": 20,
                "retention_days": 0, "building_config": {"cluster": "c"}, "status": status,
            });
            let overview = json!({
                "tenant": "a", "ordered_at": "2026-01-01T00:00:00Z", "used_bytes": 0, "reserved_bytes": 0,
                "attached": [],
            });
            let answer = json!({"image_cache": cache, "details": details, "overview": overview});
            let answer = serde_json::from_value(answer).unwrap();
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
