//! Distributes events of image caches to watchers.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;

use super::record::{CacheEvent, Record};
use larder_model::event::Line;
use larder_model::image_cache::CacheId;

/// Maximum number of messages that wait for a slow watcher. One that falls further behind is disconnected and
/// can reconnect.
const BACKLOG: usize = 1024;

/// A message for a watcher.
#[derive(Clone, Debug)]
pub enum Notification {
    /// An event of the cache.
    CacheEvent(CacheEvent),
    /// A line that the builder printed.
    Build(Box<Line>),
}

#[derive(Clone, Debug)]
enum Message {
    Notification(Notification),
    End,
}

/// The watchers of all caches.
#[derive(Debug, Default)]
pub(super) struct Hub {
    senders: Mutex<HashMap<CacheId, broadcast::Sender<Message>>>,
}

impl Hub {
    /// Registers a watcher. Events that occur before the record is read are taken from the record.
    pub(super) fn subscribe(&self, id: CacheId) -> Subscription {
        let mut senders = self.senders();
        // Remove unused channels: watching a settled, foreign or missing cache leaves one to which nothing is
        // ever sent.
        senders.retain(|_, sender| sender.receiver_count() > 0);
        let sender = senders.entry(id).or_insert_with(|| broadcast::channel(BACKLOG).0);
        Subscription(sender.subscribe())
    }

    /// Sends a line of the builder.
    pub(super) fn build(&self, id: CacheId, line: Line) {
        self.send(id, || Message::Notification(Notification::Build(Box::new(line))));
    }

    /// Sends the events of a record after `sequence`, and the end if the record is settled.
    pub(super) fn changed(&self, record: &Record, sequence: u64) {
        for happened in record.events.iter().filter(|happened| happened.sequence > sequence) {
            self.send(record.id, || Message::Notification(Notification::CacheEvent(happened.clone())));
        }
        if record.is_settled() {
            self.end(record.id);
        }
    }

    /// Ends the stream of all watchers of this cache.
    pub(super) fn end(&self, id: CacheId) {
        self.send(id, || Message::End);
        self.senders().remove(&id);
    }

    fn send(&self, id: CacheId, message: impl FnOnce() -> Message) {
        let mut senders = self.senders();
        if let Some(sender) = senders.get(&id)
            && sender.send(message()).is_err()
        {
            // The last watcher is gone.
            senders.remove(&id);
        }
    }

    fn senders(&self) -> MutexGuard<'_, HashMap<CacheId, broadcast::Sender<Message>>> {
        self.senders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A watcher that has not read the record yet.
pub(super) struct Subscription(broadcast::Receiver<Message>);

impl Subscription {
    /// Combines the record's events after `after` with those that follow.
    pub(super) fn from(self, record: &Record, after: u64) -> Watch {
        let backlog = record.events.iter().filter(|happened| happened.sequence > after).cloned().collect();
        let receiver = (!record.is_settled()).then_some(self.0);
        Watch { backlog, last: after, receiver }
    }
}

/// A stream of the events of one cache, from a given event until the cache is settled.
#[derive(Debug)]
pub struct Watch {
    backlog: VecDeque<CacheEvent>,
    last: u64,
    receiver: Option<broadcast::Receiver<Message>>,
}

impl Watch {
    /// Returns the next message. `None` means that the cache is settled or gone, or that this watcher was too
    /// slow. A slow watcher can reconnect after its last event.
    pub async fn next(&mut self) -> Option<Notification> {
        if let Some(happened) = self.backlog.pop_front() {
            self.last = happened.sequence;
            return Some(Notification::CacheEvent(happened));
        }
        loop {
            let message = self.receiver.as_mut()?.recv().await;
            match message {
                // Already delivered from the record.
                Ok(Message::Notification(Notification::CacheEvent(happened)))
                    if happened.sequence <= self.last => {}
                Ok(Message::Notification(notification)) => {
                    if let Notification::CacheEvent(happened) = &notification {
                        self.last = happened.sequence;
                    }
                    return Some(notification);
                }
                Ok(Message::End) | Err(_) => {
                    self.receiver = None;
                    return None;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::caches::record::tests::record;
    use larder_model::image_cache::Status;

    async fn sequences(mut watch: Watch) -> Vec<u64> {
        let mut seen = Vec::new();
        while let Some(Notification::CacheEvent(happened)) = watch.next().await {
            seen.push(happened.sequence);
        }
        seen
    }

    #[tokio::test]
    async fn every_event_is_delivered_once() {
        let hub = Hub::default();
        let mut record = record();
        let subscription = hub.subscribe(record.id);
        // Between subscribing and reading: delivered by both.
        record.note(DateTime::UNIX_EPOCH, "begun");
        hub.changed(&record, 1);
        let watch = subscription.from(&record, 0);
        let late = hub.subscribe(record.id).from(&record, 2);
        record.set_status(Status::Available, DateTime::UNIX_EPOCH, "sealed");
        record.work = None;
        hub.changed(&record, 2);
        assert_eq!(sequences(watch).await, [1, 2, 3]);
        assert_eq!(sequences(late).await, [3]);
        assert_eq!(
            sequences(hub.subscribe(record.id).from(&record, 1)).await,
            [2, 3],
            "settled: from the record"
        );
    }

    #[tokio::test]
    async fn dropped_watchers_leave_no_channel() {
        let hub = Hub::default();
        let stays = hub.subscribe(CacheId::random());
        for _ in 0..100 {
            drop(hub.subscribe(CacheId::random()));
        }
        let last = hub.subscribe(CacheId::random());
        assert_eq!(hub.senders().len(), 2);
        drop((stays, last));
    }

    #[tokio::test]
    async fn a_slow_watcher_is_disconnected() {
        let hub = Hub::default();
        let mut record = record();
        let watch = hub.subscribe(record.id).from(&record, 1);
        for _ in 0..BACKLOG + 2 {
            record.note(DateTime::UNIX_EPOCH, "again");
            hub.changed(&record, record.sequence - 1);
        }
        assert!(sequences(watch).await.is_empty());
    }
}
