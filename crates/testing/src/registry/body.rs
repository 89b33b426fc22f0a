//! Bodies that count their bytes, break off and stall.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use tokio::time::Instant;

use super::{Blob, Fault, State};
use larder_model::digest::Digest;

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

const CHUNK: u64 = 64 << 10;
/// Maximum time for which a connection with a rate can make up for late timers.
const BURST: Duration = Duration::from_millis(20);

/// Way in which a body ends early.
#[derive(Clone, Copy)]
pub(super) enum Break {
    Drop,
    Stall,
}

/// Way in which the bytes of a blob are sent.
#[derive(Clone, Copy)]
pub(super) struct Delivery {
    /// Offset at which the body breaks off, and how.
    pub(super) broken: Option<(u64, Break)>,
    /// Size of a piece and the pause before each. `None` sends at full speed.
    pub(super) pace: Option<(u64, Duration)>,
    /// Number of the connection ([`Fault::SlowConnections`]).
    pub(super) connection: u64,
}

/// A blob that is being sent.
struct Sending(Arc<Mutex<State>>);

impl Sending {
    fn start(state: Arc<Mutex<State>>) -> Self {
        state.lock().unwrap_or_else(PoisonError::into_inner).sending += 1;
        Sending(state)
    }

    /// Returns the rate at which the next bytes are sent, in bytes per second.
    fn rate(&self, connection: u64) -> Option<u64> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sent: u64 = state.served.values().sum();
        state.faults.iter().find_map(|fault| match fault {
            Fault::SlowConnections { every, slow, .. } if connection.is_multiple_of(*every) => Some(*slow),
            Fault::SlowConnections { rate, .. } => Some(*rate),
            Fault::Congested { rate } => Some(rate / (state.sending * state.sending).max(1)),
            Fault::SlowAfter { after, rate } if sent >= *after => Some(*rate),
            _ => None,
        })
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).sending -= 1;
    }
}

/// Sends `bytes` one by one, each after a pause.
pub(super) fn dribble(bytes: Bytes, every: Duration) -> Body {
    let pieces = stream::unfold(bytes, move |mut bytes| async move {
        if bytes.is_empty() {
            return None;
        }
        tokio::time::sleep(every).await;
        Some((Ok(Frame::data(bytes.split_to(1))), bytes))
    });
    StreamBody::new(pieces).boxed_unsync()
}

pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Sends spaces without end.
pub(super) fn endless() -> Body {
    let spaces = Bytes::from(vec![b' '; 64 << 10]);
    StreamBody::new(stream::repeat_with(move || Ok(Frame::data(spaces.clone())))).boxed_unsync()
}

/// Sends the bytes `at..end` of a blob, with zeros after its end.
pub(super) fn blob(
    state: Arc<Mutex<State>>,
    digest: Digest,
    blob: Blob,
    at: u64,
    end: u64,
    Delivery { broken, pace, connection }: Delivery,
) -> Body {
    let start = (at, Instant::now(), None);
    let chunks = stream::unfold(start, move |(at, mut due, sending)| {
        let (state, digest, blob) = (Arc::clone(&state), digest.clone(), blob.clone());
        async move {
            let sending = sending.unwrap_or_else(|| Sending::start(Arc::clone(&state)));
            let stop = broken.map_or(end, |(offset, _)| offset);
            if at == stop {
                match broken? {
                    (_, Break::Stall) => std::future::pending::<()>().await,
                    // Time to flush, so that all counted bytes arrive.
                    (_, Break::Drop) => tokio::time::sleep(Duration::from_millis(4)).await,
                }
                let failed = Err(io::Error::other("dropped on purpose"));
                return Some((failed, (at, due, Some(sending))));
            }
            let (piece, pause) = pace.unwrap_or((CHUNK, Duration::ZERO));
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            let length = (stop - at).min(CHUNK).min(piece);
            if let Some(rate) = sending.rate(connection) {
                due = due.max(Instant::now() - BURST)
                    + Duration::from_nanos(length * 1_000_000_000 / rate.max(1));
                if due > Instant::now() {
                    tokio::time::sleep_until(due).await;
                }
            }
            let real = blob.size.saturating_sub(at).min(length);
            let size = |bytes: u64| usize::try_from(bytes).expect("a chunk is small");
            let mut bytes = (blob.generate)(at.min(blob.size), size(real));
            if real < length {
                let mut padded = bytes.to_vec();
                padded.resize(size(length), 0);
                bytes = padded.into();
            }
            *state.lock().unwrap_or_else(PoisonError::into_inner).served.entry(digest).or_default() += length;
            Some((Ok(Frame::data(bytes)), (at + length, due, Some(sending))))
        }
    });
    StreamBody::new(chunks).boxed_unsync()
}
