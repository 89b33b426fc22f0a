//! Watches: one line of JSON for each change, and bookmarks (apiserver pkg/endpoints/handlers/watch.go,
//! pkg/storage/cacher).

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::body::{Body, FLUSH};
use super::fault::Effect;
use super::read::{self, Scope};
use super::route::Query;
use super::shared::{Shared, Wake};
use super::status::Refusal;

struct Watch {
    shared: Arc<Shared>,
    scope: Scope,
    partial: bool,
    bookmarks: bool,
    /// Last version that was sent.
    seen: u64,
    lines: VecDeque<String>,
    ends: Instant,
    over: bool,
    wake: watch::Receiver<Wake>,
    cuts: u64,
    expiries: u64,
    silent: bool,
    cut_after: Option<usize>,
    /// Interval between bookmarks while nothing else is sent.
    bookmark: Duration,
}

/// Returns the body of a watch.
pub(super) fn body(
    shared: &Arc<Shared>,
    scope: Scope,
    query: &Query,
    partial: bool,
    harm: Option<&Effect>,
) -> Result<Body, Refusal> {
    let requested = read::version(query.get("resourceVersion"))?;
    let initial = query.flag("sendInitialEvents");
    let bookmarks = query.flag("allowWatchBookmarks");
    if initial && (!bookmarks || query.get("resourceVersionMatch") != "NotOlderThan") {
        // apimachinery pkg/apis/meta/internalversion/validation/validation.go.
        let message = "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: sendInitialEvents requires \
             setting resourceVersionMatch to NotOlderThan, and allowWatchBookmarks";
        return Err(Refusal::new(422, "Invalid", message));
    }
    let seconds = query.get("timeoutSeconds").parse().unwrap_or(1800);
    let wake = shared.subscribe();
    let now = *wake.borrow();
    let mut watch = Watch {
        shared: Arc::clone(shared),
        scope,
        partial,
        bookmarks,
        seen: requested,
        lines: VecDeque::new(),
        ends: Instant::now() + Duration::from_secs(seconds),
        over: false,
        wake,
        cuts: now.cuts,
        expiries: now.expiries,
        silent: matches!(harm, Some(Effect::Silent)),
        cut_after: match harm {
            Some(Effect::CutAfter(events)) => Some(*events),
            _ => None,
        },
        bookmark: shared.read(|state| state.timing.bookmark),
    };
    watch.begin(requested, initial);
    let lines = stream::unfold(watch, |mut watch| async move {
        let line = watch.next().await?;
        Some((line.map(|line| Frame::data(Bytes::from(line))), watch))
    });
    Ok(StreamBody::new(lines).boxed_unsync())
}

impl Watch {
    /// Starts the watch. Version 0, or no version, starts with all existing objects. A version before the
    /// compaction ends the watch.
    fn begin(&mut self, requested: u64, initial: bool) {
        let found = self.shared.read(|state| {
            if requested > 0 && !initial {
                return state.check_not_compacted(requested).map(|()| None);
            }
            Ok(Some((state.revision, state.select(&self.scope))))
        });
        match found {
            Ok(None) => {}
            Ok(Some((revision, objects))) => {
                for object in objects {
                    self.push_event(json!({"type": "ADDED", "object": object.as_ref()}));
                }
                self.seen = revision;
                if initial {
                    self.bookmark(true);
                }
            }
            Err(refusal) => self.refuse(&refusal),
        }
    }

    fn refuse(&mut self, refusal: &Refusal) {
        self.lines.push_back(format!("{}\n", json!({"type": "ERROR", "object": refusal.body()})));
        self.over = true;
    }

    fn push_event(&mut self, mut event: Value) {
        if self.partial {
            event["object"] = read::partial(&event["object"]);
        }
        self.lines.push_back(format!("{event}\n"));
    }

    fn bookmark(&mut self, initial: bool) {
        if !self.bookmarks {
            return;
        }
        let kind = &self.scope.kind;
        let mut object = json!({
            "kind": kind.kind, "apiVersion": kind.api_version(),
            "metadata": {"resourceVersion": self.seen.to_string(), "creationTimestamp": null},
        });
        if initial {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        self.push_event(json!({"type": "BOOKMARK", "object": object}));
    }

    async fn next(&mut self) -> Option<io::Result<String>> {
        loop {
            if let Some(line) = self.lines.pop_front().filter(|_| !self.silent) {
                return Some(self.cut(line).await);
            }
            if self.over {
                return None;
            }
            let wake = *self.wake.borrow_and_update();
            if wake.cuts != self.cuts {
                return Some(Err(io::ErrorKind::ConnectionReset.into()));
            }
            if wake.expiries != self.expiries {
                self.refuse(&Refusal::expired("The resourceVersion for the provided watch is too old."));
                continue;
            }
            let (events, revision) = self
                .shared
                .read(|state| (state.changes_since(&self.scope, self.seen), state.revision.max(self.seen)));
            self.seen = revision;
            for event in events {
                self.push_event(event);
            }
            if !self.lines.is_empty() && !self.silent {
                continue;
            }
            let bookmark = Instant::now() + self.bookmark;
            tokio::select! {
                changed = self.wake.changed() => {
                    changed.ok()?;
                }
                () = sleep_until(self.ends) => {
                    self.bookmark(false);
                    self.over = true;
                }
                () = sleep_until(bookmark) => self.bookmark(false),
            }
        }
    }

    /// Ends the connection in the middle of the line that must be cut.
    async fn cut(&mut self, line: String) -> io::Result<String> {
        match &mut self.cut_after {
            Some(0) => {
                tokio::time::sleep(FLUSH).await;
                Err(io::ErrorKind::ConnectionReset.into())
            }
            Some(1) => {
                self.cut_after = Some(0);
                self.lines.push_front(String::new());
                let half = line.len() / 2;
                Ok(line.chars().take(half).collect())
            }
            Some(left) => {
                *left -= 1;
                Ok(line)
            }
            None => Ok(line),
        }
    }
}
