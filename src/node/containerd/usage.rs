//! Who stands on the layers of a volume.

use std::collections::{HashMap, HashSet};
use std::fmt;

use tonic::{Code, Response};

use super::call::{Call, Failure, Session};
use super::dependents::is_from_volume;
use super::{Client, Error};
use crate::node::grpc;
use larder_containerd_api::services::containers::v1 as containers;
use larder_containerd_api::services::containers::v1::containers_client::ContainersClient;
use larder_containerd_api::services::snapshots::v1 as snapshots;
use larder_containerd_api::services::snapshots::v1::snapshots_client::SnapshotsClient;
use larder_model::escape::escape;
use larder_model::runtime::Containerd;
use larder_model::seal::Content;

/// Somebody who would lose the files below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The namespace.
    pub namespace: String,
    /// The container, running or not; none where something else has a snapshot mounted, or unpacks on top of a layer.
    pub container: Option<String>,
    /// Its snapshot.
    pub snapshot: String,
    /// Its image, as the container names it; may be empty.
    pub image: String,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let namespace = escape(&self.namespace);
        match &self.container {
            Some(container) if self.image.is_empty() => {
                write!(f, "container {} in namespace {namespace}", escape(container))
            }
            Some(container) => write!(
                f,
                "container {} of {} in namespace {namespace}",
                escape(container),
                escape(&self.image)
            ),
            None => write!(f, "snapshot {} in namespace {namespace}", escape(&self.snapshot)),
        }
    }
}

impl Client {
    /// Containers of all namespaces, running or not, that stand on a layer of the volume by our snapshotter, and snapshots of
    /// other uses. Another volume may have the layers, too.
    ///
    /// # Errors
    /// [`Error`]: containerd or the snapshotter does not answer.
    pub async fn in_use(&self, content: &Content) -> Result<Vec<User>, Error> {
        let chains: HashSet<String> = content.layers.iter().map(|layer| layer.chain_id.to_string()).collect();
        let mut users = Vec::new();
        for namespace in self.namespaces().await? {
            let session = self.session_in(&namespace);
            let containers = session.containers().await?;
            let Some(snapshots) = session.snapshots(!containers.is_empty()).await? else { continue };
            // containerd's own snapshotter does not say where its layers lie.
            let lies_there = |info: &snapshots::Info| {
                chains.contains(&info.name) && (self.snapshotter == Containerd::EROFS || is_from_volume(info))
            };
            users.extend(find(&namespace, &containers, &snapshots, lies_there));
        }
        Ok(users)
    }

    /// The same as an error of class Busy.
    ///
    /// # Errors
    /// [`Error::InUse`], and those of [`in_use`](Self::in_use).
    pub async fn refuse_if_used(&self, content: &Content) -> Result<(), Error> {
        let users = self.in_use(content).await?;
        if users.is_empty() { Ok(()) } else { Err(Error::InUse(users)) }
    }
}

impl Client {
    /// Whether containerd has the snapshotter, and reaches it.
    ///
    /// # Errors
    /// [`Error`]: containerd or the snapshotter does not answer.
    pub async fn has_snapshotter(&self) -> Result<bool, Error> {
        Ok(self.session().snapshots(false).await?.is_some())
    }
}

impl Session<'_> {
    /// The containers that are on our snapshotter.
    async fn containers(&self) -> Result<Vec<containers::Container>, Error> {
        let mut client = ContainersClient::with_origin(self.containerd.channel(), grpc::origin());
        let call = Call { doing: "listing", what: "containers" };
        // Their specs are large, and one message would have to hold all of them.
        let request = containers::ListContainersRequest::default();
        let all = self
            .ask(call, request, async |request| {
                let mut stream = client.list_stream(request).await?.into_inner();
                let mut all = Vec::new();
                while let Some(message) = stream.message().await? {
                    all.extend(message.container.map(|container| containers::Container {
                        spec: None,
                        extensions: HashMap::new(),
                        ..container
                    }));
                }
                Ok(Response::new(all))
            })
            .await?;
        let snapshotter = &self.containerd.snapshotter;
        Ok(all.into_iter().filter(|container| container.snapshotter == *snapshotter).collect())
    }

    /// All snapshots of our snapshotter. None where containerd does not know it, and nothing is `needed` of it.
    pub(super) async fn snapshots(&self, needed: bool) -> Result<Option<Vec<snapshots::Info>>, Error> {
        let mut client = SnapshotsClient::with_origin(self.containerd.channel(), grpc::origin());
        let call = Call { doing: "listing", what: "snapshots" };
        let request = snapshots::ListSnapshotsRequest {
            snapshotter: self.containerd.snapshotter.clone(),
            ..Default::default()
        };
        let listed = self
            .attempt(request, async |request| {
                let mut stream = client.list(request).await?.into_inner();
                let mut all = Vec::new();
                while let Some(message) = stream.message().await? {
                    all.extend(message.info);
                }
                Ok(Response::new(all))
            })
            .await;
        let failure: Failure = match listed {
            Ok(all) => return Ok(Some(all)),
            Err(failure) => failure,
        };
        let is_down = failure.is(Code::Unavailable);
        match self.failed(&call, &failure) {
            Error::NoSnapshotter(_) if !needed => Ok(None),
            error if is_down => Err(self.snapshotter_down(error)),
            error => Err(error),
        }
    }
}

/// The uses of the layers that lie there.
fn find(
    namespace: &str,
    containers: &[containers::Container],
    snapshots: &[snapshots::Info],
    lies_there: impl Fn(&snapshots::Info) -> bool,
) -> Vec<User> {
    let parents: HashMap<&str, &str> =
        snapshots.iter().map(|info| (info.name.as_str(), info.parent.as_str())).collect();
    let layers: HashSet<&str> =
        snapshots.iter().filter(|info| lies_there(info)).map(|info| info.name.as_str()).collect();
    let stands_on = |key: &str| {
        let (mut at, mut steps) = (key, 0);
        // What is listed while it changes may go in a circle.
        while let Some(parent) = parents.get(at).filter(|parent| !parent.is_empty() && steps <= parents.len())
        {
            if layers.contains(parent) {
                return true;
            }
            (at, steps) = (parent, steps + 1);
        }
        false
    };
    let by_key: HashMap<&str, &containers::Container> =
        containers.iter().map(|container| (container.snapshot_key.as_str(), container)).collect();
    let in_use = |info: &&snapshots::Info| {
        matches!(info.kind(), snapshots::Kind::Active | snapshots::Kind::View) && stands_on(&info.name)
    };
    let users = snapshots.iter().filter(in_use).map(|info| {
        let container = by_key.get(info.name.as_str());
        User {
            namespace: namespace.to_owned(),
            container: container.map(|container| container.id.clone()),
            snapshot: info.name.clone(),
            image: container.map(|container| container.image.clone()).unwrap_or_default(),
        }
    });
    users.collect()
}
