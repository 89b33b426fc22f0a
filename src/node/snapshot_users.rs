//! Finds snapshots that depend on the layers of a volume, through the snapshotter's socket. The snapshotter
//! has the snapshots of containerd in all namespaces, and no others.
//!
//! If several volumes have a layer, the snapshotter uses the one that was attached last. Later snapshots
//! therefore depend on that one.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::grpc;
use super::snapshotter::ON_VOLUME;
use larder_containerd_api::services::snapshots::v1::snapshots_client::SnapshotsClient;
use larder_containerd_api::services::snapshots::v1::{Info, Kind, ListSnapshotsRequest};
use larder_model::class::Class;
use larder_model::escape::escape_to;
use larder_model::seal::Content;

/// Maximum time for the snapshotter's answer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Time until the snapshotter uses a newly attached volume, with a margin.
const DETECTION_DELAY: TimeDelta =
    TimeDelta::seconds(3 * super::snapshotter::POLL_INTERVAL.as_secs().cast_signed());
/// The label of a layer with its chain ID.
const TARGET: &str = "containerd.io/snapshot.ref";
/// Maximum length of the snapshotter's message in an error, characters.
const MAX_MESSAGE: usize = 300;

/// The snapshotter does not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The thread for the request cannot be started.
    #[error("querying the snapshotter: {0}")]
    Thread(io::Error),
    /// The snapshotter returned an error, or cannot be reached.
    #[error("querying the snapshotter at {socket}: {said}")]
    Refused {
        /// Path of the socket.
        socket: String,
        /// The error message.
        said: String,
    },
    /// The snapshotter did not answer in time.
    #[error("querying the snapshotter at {socket}: no answer within {} s", TIMEOUT.as_secs())]
    Late {
        /// Path of the socket.
        socket: String,
    },
}

impl Error {
    /// Returns [`Class::Busy`], because a later attempt might succeed.
    pub fn class(&self) -> Class {
        Class::Busy
    }
}

/// Content of another attached volume, and the time when it was attached.
pub type Other = (Content, DateTime<Utc>);

/// Returns an active snapshot (of a container, or being unpacked) that depends on a layer of `content`, and
/// on none of the `others`. `None` if there is none. Blocks.
///
/// # Errors
/// The snapshotter does not answer, or returns an error.
pub fn first(socket: &Path, content: &Content, others: &[Other]) -> Result<Option<String>, Error> {
    let shown = || socket.display().to_string();
    let runtime = crate::blocking::current_thread();
    let runtime = runtime.map_err(Error::Thread)?;
    let listed = runtime.block_on(async { tokio::time::timeout(TIMEOUT, list(socket)).await });
    let all = listed.map_err(|_| Error::Late { socket: shown() })?.map_err(|status| Error::Refused {
        socket: shown(),
        said: escape_to(&format!("{:?}: {}", status.code(), status.message()), MAX_MESSAGE),
    })?;
    // The layers, and since when another volume has them.
    let mut chains: HashMap<String, Option<DateTime<Utc>>> = HashMap::new();
    for layer in &content.layers {
        let has = |other: &&Other| other.0.layers.iter().any(|own| own.chain_id == layer.chain_id);
        let since = others.iter().filter(has).map(|(_, since)| *since + DETECTION_DELAY).min();
        chains.insert(layer.chain_id.to_string(), since);
    }
    Ok(find(&all, &chains))
}

async fn list(socket: &Path) -> Result<Vec<Info>, tonic::Status> {
    let mut client = SnapshotsClient::with_origin(grpc::channel(socket.to_owned()), grpc::origin());
    let mut stream = client.list(ListSnapshotsRequest::default()).await?.into_inner();
    let mut all = Vec::new();
    while let Some(message) = stream.message().await? {
        all.extend(message.info);
    }
    Ok(all)
}

fn find(all: &[Info], chains: &HashMap<String, Option<DateTime<Utc>>>) -> Option<String> {
    let by_name: HashMap<&str, &Info> = all.iter().map(|info| (info.name.as_str(), info)).collect();
    let uses = |info: &&Info| {
        let mut above = by_name.get(info.parent.as_str());
        // Limits the steps, in case of a cycle, which would be an error of the snapshotter.
        for _ in 0..all.len() {
            let Some(parent) = above else { return false };
            // A layer that was unpacked here also has the chain ID label.
            let chain = parent.labels.get(TARGET).filter(|_| parent.labels.contains_key(ON_VOLUME));
            let elsewhere = chain.and_then(|chain| chains.get(chain));
            if elsewhere.is_some_and(|since| since.is_none_or(|since| created(info) <= since)) {
                return true;
            }
            above = by_name.get(parent.parent.as_str());
        }
        false
    };
    let open = all.iter().filter(|info| info.kind() != Kind::Committed);
    open.into_iter().find(uses).map(|info| info.name.clone())
}

/// Returns the creation time. A snapshot without a time counts as the oldest.
fn created(info: &Info) -> DateTime<Utc> {
    let time = info.created_at.unwrap_or_default();
    DateTime::from_timestamp(time.seconds, u32::try_from(time.nanos).unwrap_or(0)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::snapshotter::YES;
    use super::*;

    fn info(name: &str, parent: &str, kind: Kind, chain: Option<&str>) -> Info {
        Info {
            name: name.into(),
            parent: parent.into(),
            kind: kind.into(),
            labels: chain
                .map(|chain| {
                    [(TARGET, chain), (ON_VOLUME, YES)].map(|(key, value)| (key.into(), value.into()))
                })
                .into_iter()
                .flatten()
                .collect(),
            ..Info::default()
        }
    }

    #[test]
    fn containers_count_and_images_do_not() {
        let chains = HashMap::from([("one".to_owned(), None), ("two".to_owned(), None)]);
        let mut all = vec![
            info("base", "", Kind::Committed, Some("one")),
            info("top", "base", Kind::Committed, Some("other")),
            info("pulled", "", Kind::Committed, Some("elsewhere")),
            info("container", "pulled", Kind::Active, None),
        ];
        assert_eq!(find(&all, &chains), None);
        all.push(info("view", "top", Kind::View, None));
        assert_eq!(find(&all, &chains), Some("view".into()));
        all[0].labels.remove(ON_VOLUME);
        assert_eq!(find(&all, &chains), None, "it was unpacked here");
        assert_eq!(find(&[info("round", "round", Kind::Active, None)], &chains), None);
    }

    #[test]
    fn earlier_snapshots_use_the_older_volume() {
        let since = DateTime::from_timestamp(100, 0).unwrap();
        let chains = HashMap::from([("one".to_owned(), Some(since)), ("two".to_owned(), None)]);
        let of = |seconds: i64, parent: &str| {
            let mut all = vec![
                info("one", "", Kind::Committed, Some("one")),
                info("two", "one", Kind::Committed, Some("two")),
                info("container", parent, Kind::Active, None),
            ];
            all[2].created_at = Some(prost_types::Timestamp { seconds, nanos: 0 });
            find(&all, &chains).is_some()
        };
        assert!(of(100, "one") && !of(101, "one"));
        assert!(of(101, "two"), "the upper layer is here alone");
    }
}
