//! What stands on the layers of a volume, asked of the snapshotter at its socket: it has all snapshots of containerd, whatever
//! their namespaces, and of nobody else.
//!
//! Of several volumes with one layer the snapshotter takes the one that was attached last, so what was made since then stands
//! on that one.

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

/// How long the snapshotter may take.
const LIMIT: Duration = Duration::from_secs(30);
/// In what time the snapshotter sees that a volume was attached, and some more.
const SEEN: TimeDelta = TimeDelta::seconds(3 * super::snapshotter::EVERY.as_secs().cast_signed());
/// The label of a layer: its chain ID.
const TARGET: &str = "containerd.io/snapshot.ref";
/// How much of what it says is repeated, characters.
const TOLD: usize = 300;

/// The snapshotter cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No thread to ask on.
    #[error("asking the snapshotter: {0}")]
    Thread(io::Error),
    /// It refuses, or nobody answers.
    #[error("asking the snapshotter at {socket}: {said}")]
    Refused {
        /// Where.
        socket: String,
        /// What came instead of an answer.
        said: String,
    },
    /// It does not answer.
    #[error("asking the snapshotter at {socket}: no answer within {} s", LIMIT.as_secs())]
    Late {
        /// Where.
        socket: String,
    },
}

impl Error {
    /// The class: a later try may help.
    pub fn class(&self) -> Class {
        Class::Busy
    }
}

/// Another attached volume, and since when it is.
pub type Other = (Content, DateTime<Utc>);

/// A snapshot that a container has, or that is being unpacked, on top of a layer of this content and of none of the `others`;
/// none where nobody does. Blocks.
///
/// # Errors
/// [`Error`].
pub fn first(socket: &Path, content: &Content, others: &[Other]) -> Result<Option<String>, Error> {
    let shown = || socket.display().to_string();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(Error::Thread)?;
    let listed = runtime.block_on(async { tokio::time::timeout(LIMIT, list(socket)).await });
    let all = listed.map_err(|_| Error::Late { socket: shown() })?.map_err(|status| Error::Refused {
        socket: shown(),
        said: escape_to(&format!("{:?}: {}", status.code(), status.message()), TOLD),
    })?;
    // The layers, and since when they are elsewhere.
    let mut chains: HashMap<String, Option<DateTime<Utc>>> = HashMap::new();
    for layer in &content.layers {
        let has = |other: &&Other| other.0.layers.iter().any(|own| own.chain_id == layer.chain_id);
        let since = others.iter().filter(has).map(|(_, since)| *since + SEEN).min();
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
        // Each is asked once at most: what stands on itself would be a fault of the snapshotter.
        for _ in 0..all.len() {
            let Some(parent) = above else { return false };
            // One that was unpacked here has the label of its chain ID, too.
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

/// What has no time is as old as can be.
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
    fn what_is_elsewhere_by_now_is_used_by_those_before() {
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
