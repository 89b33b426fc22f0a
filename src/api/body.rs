//! The body of a request, which is read only when the sender is allowed to send it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::errors::{Code, Problem};

/// Maximum size of a body, bytes.
pub(super) const MAX: usize = 1 << 20;
/// Maximum size of a typical order, bytes, with a margin: the longest names and references, and as many as
/// allowed.
const SMALL: usize = 64 << 10;
/// Maximum number of bodies larger than [`SMALL`] in memory. Anyone who has the public part of an access key
/// can have a body kept until its signature is checked. The number of connections and streams alone would not
/// bound the memory enough.
const LARGE_AT_ONCE: usize = 32;
/// Maximum number of bytes read and discarded from a longer body before it is refused. A client that is still
/// sending when the connection closes might never see the answer.
const DRAIN: usize = 4 << 20;
/// Maximum time to read and discard an unused body.
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// A body that has not been read. Clones share the same body.
#[derive(Clone, Debug)]
pub(super) struct Pending(Arc<Mutex<Option<Body>>>);

/// Room for large bodies in memory. Clones share the same room.
#[derive(Clone, Debug)]
pub(super) struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Room(Arc::new(Semaphore::new(LARGE_AT_ONCE)))
    }
}

/// A body that has been read, or only hashed.
#[derive(Debug)]
pub(super) struct Received {
    /// The bytes; empty if only the hash was requested.
    pub(super) bytes: Bytes,
    /// SHA-256 of the bytes.
    pub(super) sha256: [u8; 32],
    /// The permit of a large body, until it is dropped.
    pub(super) place: Option<OwnedSemaphorePermit>,
}

/// The parts of a body that are kept.
#[derive(Clone, Copy, Debug)]
pub(super) enum Keep<'a> {
    /// All bytes. A large body waits until there is room.
    Bytes(&'a Room),
    /// Only the hash.
    Hash,
}

impl Pending {
    pub(super) fn new(body: Body) -> Self {
        Pending(Arc::new(Mutex::new(Some(body))))
    }

    /// Takes the body to read it in parts. `None` on a second call.
    pub(super) fn take(&self) -> Option<Body> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Returns the unread rest of the body.
    pub(super) fn put_back(&self, body: Body) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
    }

    /// Returns the length in bytes, if the head states it.
    pub(super) fn length(&self) -> Option<u64> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .and_then(|body| body.size_hint().exact())
    }

    /// Reads the whole body, at most [`MAX`] bytes, within `time`. A second call returns an empty body.
    pub(super) async fn receive(&self, time: Duration, keep: Keep<'_>) -> Result<Received, Problem> {
        let body = self.take().unwrap_or_default();
        match tokio::time::timeout(time, read(body, keep)).await {
            Ok(received) => received,
            Err(_) => Err(Problem::invalid(format!("the body did not arrive within {} s", time.as_secs()))),
        }
    }

    /// Reads and discards an unused body, so that a client that is still sending receives the answer.
    pub(super) async fn discard(&self) {
        if let Some(body) = self.take()
            && !body.is_end_stream()
        {
            // The answer is the same whatever the result.
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
        let frame = frame.map_err(|_| Problem::invalid("the body is incomplete"))?;
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
    async fn large_bodies_wait_for_room_and_small_ones_do_not() {
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
    async fn a_body_that_does_not_arrive() {
        let never = Pending::new(Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>()));
        let problem =
            never.receive(Duration::from_millis(20), Keep::Bytes(&Room::default())).await.unwrap_err();
        assert_eq!(problem.code(), Code::Invalid);
        let broken = stream::iter([Err::<Bytes, _>(std::io::Error::other("gone"))]);
        let broken = Pending::new(Body::from_stream(broken));
        assert!(broken.receive(Duration::from_secs(60), Keep::Bytes(&Room::default())).await.is_err());
    }
}
