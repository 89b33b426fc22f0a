//! The body of a request, held back until somebody is known to have a right to send it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::errors::{Code, Problem};

/// Longest body, bytes.
pub(super) const MAX: usize = 1 << 20;
/// What an order comes to at most, with room: the longest names and references, and as many as there may be.
const SMALL: usize = 64 << 10;
/// Bodies beyond [`SMALL`] that are in memory at once. Who knows the public part of an access key can have a body kept until
/// its signature is looked at, and there are as many bodies as connections and streams.
const LARGE_AT_ONCE: usize = 32;
/// What is read and thrown away of a longer one before it is refused: a client that is still sending when the connection
/// closes may never see the answer.
const DRAIN: usize = 4 << 20;
/// How long a body that nobody read may take to come to its end.
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// A body that has not been read. Clones are the same one.
#[derive(Clone, Debug)]
pub(super) struct Pending(Arc<Mutex<Option<Body>>>);

/// Room for the bodies that are kept. Clones are handles to the same.
#[derive(Clone, Debug)]
pub(super) struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Room(Arc::new(Semaphore::new(LARGE_AT_ONCE)))
    }
}

/// A body that has.
#[derive(Debug)]
pub(super) struct Received {
    /// The bytes; empty where they were not to be kept.
    pub(super) bytes: Bytes,
    /// SHA-256 of them.
    pub(super) sha256: [u8; 32],
    /// The place of a large one, until it is dropped.
    pub(super) place: Option<OwnedSemaphorePermit>,
}

/// Whether the bytes of a body are kept.
#[derive(Clone, Copy, Debug)]
pub(super) enum Keep<'a> {
    /// All of them, where there is room; who finds none waits for it.
    Bytes(&'a Room),
    /// Only what they hash to.
    Hash,
}

impl Pending {
    pub(super) fn new(body: Body) -> Self {
        Pending(Arc::new(Mutex::new(Some(body))))
    }

    /// The body itself, for who reads it in parts. A second call gets none.
    pub(super) fn take(&self) -> Option<Body> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Gives back what was not read.
    pub(super) fn put_back(&self, body: Body) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
    }

    /// How long it is, bytes, where the head says so.
    pub(super) fn length(&self) -> Option<u64> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .and_then(|body| body.size_hint().exact())
    }

    /// Reads the body to its end, [`MAX`] bytes at most, within `time` in all. A second call gets an empty body.
    pub(super) async fn receive(&self, time: Duration, keep: Keep<'_>) -> Result<Received, Problem> {
        let body = self.take().unwrap_or_default();
        match tokio::time::timeout(time, read(body, keep)).await {
            Ok(received) => received,
            Err(_) => Err(Problem::invalid(format!("the body was not there within {} s", time.as_secs()))),
        }
    }

    /// Reads what nobody wanted, so that the answer reaches a client that is still sending.
    pub(super) async fn discard(&self) {
        if let Some(body) = self.take()
            && !body.is_end_stream()
        {
            // Whatever comes of it, the answer stands.
            let _ = tokio::time::timeout(DRAIN_TIME, read(body, Keep::Hash)).await;
        }
    }
}

async fn read(mut body: Body, keep: Keep<'_>) -> Result<Received, Problem> {
    let too_large = || Problem::new(Code::TooLarge, format!("the body is longer than {MAX} bytes"));
    if body.size_hint().lower() > DRAIN as u64 {
        return Err(too_large());
    }
    let mut bytes = BytesMut::new();
    let mut hash = Sha256::new();
    let mut length = 0usize;
    let mut place = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Problem::invalid("the body broke off"))?;
        let Ok(data) = frame.into_data() else { continue };
        length = length.saturating_add(data.len());
        if length > DRAIN {
            return Err(too_large());
        }
        if length > MAX {
            bytes.clear();
            continue;
        }
        hash.update(&data);
        if let Keep::Bytes(room) = keep {
            if length > SMALL && place.is_none() {
                // The semaphore is never closed.
                place = Arc::clone(&room.0).acquire_owned().await.ok();
            }
            bytes.extend_from_slice(&data);
        }
    }
    if length > MAX {
        return Err(too_large());
    }
    Ok(Received { bytes: bytes.freeze(), sha256: hash.finalize().into(), place })
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    fn chunks(count: usize, size: usize) -> Pending {
        let chunk = Bytes::from(vec![b'x'; size]);
        let stream = stream::iter((0..count).map(move |_| Ok::<_, std::io::Error>(chunk.clone())));
        Pending::new(Body::from_stream(stream))
    }

    #[tokio::test]
    async fn bounds_are_inclusive() {
        let time = Duration::from_secs(60);
        let whole = chunks(16, MAX / 16);
        assert_eq!(whole.receive(time, Keep::Bytes(&Room::default())).await.unwrap().bytes.len(), MAX);
        assert!(
            whole.receive(time, Keep::Bytes(&Room::default())).await.unwrap().bytes.is_empty(),
            "read once"
        );
        for over in [chunks(1, MAX + 1), chunks(64, DRAIN / 32)] {
            assert_eq!(
                over.receive(time, Keep::Bytes(&Room::default())).await.unwrap_err().code(),
                Code::TooLarge
            );
        }
        let hashed = Pending::new(Body::from("abc")).receive(time, Keep::Hash).await.unwrap();
        assert!(hashed.bytes.is_empty());
        assert_eq!(larder_model::digest::hex(&hashed.sha256)[..8], *"ba7816bf");
    }

    #[tokio::test]
    async fn large_ones_wait_for_each_other_and_small_ones_for_nobody() {
        let (room, short) = (Room::default(), Duration::from_millis(20));
        let mut kept = Vec::new();
        for _ in 0..LARGE_AT_ONCE {
            kept.push(
                chunks(1, SMALL + 1).receive(Duration::from_secs(60), Keep::Bytes(&room)).await.unwrap(),
            );
        }
        assert!(chunks(1, SMALL + 1).receive(short, Keep::Bytes(&room)).await.is_err(), "no room");
        assert!(chunks(4, SMALL / 4).receive(short, Keep::Bytes(&room)).await.is_ok());
        assert!(chunks(1, MAX).receive(short, Keep::Hash).await.is_ok());
        kept.pop();
        assert!(chunks(1, SMALL + 1).receive(short, Keep::Bytes(&room)).await.is_ok());
    }

    #[tokio::test]
    async fn a_body_that_does_not_come() {
        let never = Pending::new(Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>()));
        let problem =
            never.receive(Duration::from_millis(20), Keep::Bytes(&Room::default())).await.unwrap_err();
        assert_eq!(problem.code(), Code::Invalid);
        let broken = stream::iter([Err::<Bytes, _>(std::io::Error::other("gone"))]);
        let broken = Pending::new(Body::from_stream(broken));
        assert!(broken.receive(Duration::from_secs(60), Keep::Bytes(&Room::default())).await.is_err());
    }
}
