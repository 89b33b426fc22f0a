//! Who watches which cache.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;

use super::record::{Happened, Record};
use larder_model::event::Line;
use larder_model::image_cache::CacheId;

/// Messages that wait for a slow watcher; one that falls further behind is cut off and may come back.
const BACKLOG: usize = 1024;

/// What a watcher is told.
#[derive(Clone, Debug)]
pub enum Told {
    /// Something happened to the cache.
    Happened(Happened),
    /// The builder said something.
    Build(Box<Line>),
}

#[derive(Clone, Debug)]
enum Message {
    Told(Told),
    End,
}

/// The watchers of all caches.
#[derive(Debug, Default)]
pub(super) struct Hub {
    senders: Mutex<HashMap<CacheId, broadcast::Sender<Message>>>,
}

impl Hub {
    /// Starts to listen. What happened until the record is read is then told from the record.
    pub(super) fn subscribe(&self, id: CacheId) -> Listening {
        let mut senders = self.senders();
        // A watcher of a cache that is settled, another tenant's or not there leaves a channel that nothing is ever sent to.
        senders.retain(|_, sender| sender.receiver_count() > 0);
        let sender = senders.entry(id).or_insert_with(|| broadcast::channel(BACKLOG).0);
        Listening(sender.subscribe())
    }

    /// Tells what the builder said.
    pub(super) fn build(&self, id: CacheId, line: Line) {
        self.send(id, || Message::Told(Told::Build(Box::new(line))));
    }

    /// Tells the events of a record after `sequence`, and the end where the record has come to one.
    pub(super) fn changed(&self, record: &Record, sequence: u64) {
        for happened in record.events.iter().filter(|happened| happened.sequence > sequence) {
            self.send(record.id, || Message::Told(Told::Happened(happened.clone())));
        }
        if record.is_settled() {
            self.end(record.id);
        }
    }

    /// Nothing more will be told of this cache.
    pub(super) fn end(&self, id: CacheId) {
        self.send(id, || Message::End);
        self.senders().remove(&id);
    }

    fn send(&self, id: CacheId, message: impl FnOnce() -> Message) {
        let mut senders = self.senders();
        if let Some(sender) = senders.get(&id)
            && sender.send(message()).is_err()
        {
            // The last watcher left.
            senders.remove(&id);
        }
    }

    fn senders(&self) -> MutexGuard<'_, HashMap<CacheId, broadcast::Sender<Message>>> {
        self.senders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A watcher that has not read the record yet.
pub(super) struct Listening(broadcast::Receiver<Message>);

impl Listening {
    /// Joins what the record tells after `after` with what comes.
    pub(super) fn from(self, record: &Record, after: u64) -> Watch {
        let backlog = record.events.iter().filter(|happened| happened.sequence > after).cloned().collect();
        let receiver = (!record.is_settled()).then_some(self.0);
        Watch { backlog, last: after, receiver }
    }
}

/// What happens to one cache, from some event on until it is settled.
#[derive(Debug)]
pub struct Watch {
    backlog: VecDeque<Happened>,
    last: u64,
    receiver: Option<broadcast::Receiver<Message>>,
}

impl Watch {
    /// The next thing told. None is the end: the cache is settled or gone, or this watcher was too slow and may begin again
    /// after the last event that it has.
    pub async fn next(&mut self) -> Option<Told> {
        if let Some(happened) = self.backlog.pop_front() {
            self.last = happened.sequence;
            return Some(Told::Happened(happened));
        }
        loop {
            let message = self.receiver.as_mut()?.recv().await;
            match message {
                // Told by the record already.
                Ok(Message::Told(Told::Happened(happened))) if happened.sequence <= self.last => {}
                Ok(Message::Told(told)) => {
                    if let Told::Happened(happened) = &told {
                        self.last = happened.sequence;
                    }
                    return Some(told);
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
    use larder_model::image_cache::{Spec, Status};

    fn record() -> Record {
        let spec = Spec {
            name: "web".parse().unwrap(),
            images: vec!["nginx".parse().unwrap()],
            size_gib: 20,
            retention_days: 0,
            cluster: "c".into(),
            pull_secrets: Vec::new(),
        };
        Record::new(CacheId::random(), "team".parse().unwrap(), spec, DateTime::UNIX_EPOCH)
    }

    async fn sequences(mut watch: Watch) -> Vec<u64> {
        let mut seen = Vec::new();
        while let Some(Told::Happened(happened)) = watch.next().await {
            seen.push(happened.sequence);
        }
        seen
    }

    #[tokio::test]
    async fn nothing_is_told_twice_or_missed() {
        let hub = Hub::default();
        let mut record = record();
        let listening = hub.subscribe(record.id);
        // Between listening and reading: told by both.
        record.note(DateTime::UNIX_EPOCH, "begun");
        hub.changed(&record, 1);
        let watch = listening.from(&record, 0);
        let late = hub.subscribe(record.id).from(&record, 2);
        record.turn(Status::Available, DateTime::UNIX_EPOCH, "sealed");
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
    async fn watchers_that_left_leave_nothing() {
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
    async fn who_is_too_slow_is_cut_off() {
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
