//! Finds containers and snapshots that use the layers of a volume.

use std::collections::{HashMap, HashSet};

use tonic::{Code, Response};

use super::call::{Call, Failure, Session};
use super::dependents::is_from_volume;
use super::user::User;
use super::{Client, Error};
use crate::node::grpc;
use larder_containerd_api::services::containers::v1 as containers;
use larder_containerd_api::services::containers::v1::containers_client::ContainersClient;
use larder_containerd_api::services::snapshots::v1 as snapshots;
use larder_containerd_api::services::snapshots::v1::snapshots_client::SnapshotsClient;
use larder_model::runtime::Containerd;
use larder_model::seal::Content;

impl Client {
    /// Returns the containers of all namespaces, running or not, that use a layer of the volume through the
    /// configured snapshotter, and other uses of its snapshots. Another volume might have the same layers.
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
            // containerd's own snapshotter does not report the location of its layers.
            let is_on_volume = |info: &snapshots::Info| {
                chains.contains(&info.name) && (self.snapshotter == Containerd::EROFS || is_from_volume(info))
            };
            users.extend(find(&namespace, &containers, &snapshots, is_on_volume));
        }
        Ok(users)
    }

    /// Fails with an error of class Busy if the volume is [in use](Self::in_use).
    ///
    /// # Errors
    /// [`Error::InUse`], and those of [`in_use`](Self::in_use).
    pub async fn refuse_if_used(&self, content: &Content) -> Result<(), Error> {
        let users = self.in_use(content).await?;
        if users.is_empty() { Ok(()) } else { Err(Error::InUse(users)) }
    }
}

impl Client {
    /// Reports whether containerd has the snapshotter and can connect to it.
    ///
    /// # Errors
    /// [`Error`]: containerd or the snapshotter does not answer.
    pub async fn has_snapshotter(&self) -> Result<bool, Error> {
        Ok(self.session().snapshots(false).await?.is_some())
    }
}

impl Session<'_> {
    /// Lists the containers that use the configured snapshotter.
    async fn containers(&self) -> Result<Vec<containers::Container>, Error> {
        let mut client = ContainersClient::with_origin(self.containerd.channel(), grpc::origin());
        let call = Call { doing: "listing", what: "containers" };
        // Use a stream: the specs are large, and a single message would contain all of them.
        let request = containers::ListContainersRequest::default();
        let all = self
            .send(call, request, async |request| {
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

    /// Lists all snapshots of the configured snapshotter. `None` if containerd does not have it, and it is
    /// not `needed`.
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

/// Finds the users of the snapshots for which `is_on_volume` returns `true`.
fn find(
    namespace: &str,
    containers: &[containers::Container],
    snapshots: &[snapshots::Info],
    is_on_volume: impl Fn(&snapshots::Info) -> bool,
) -> Vec<User> {
    let parents: HashMap<&str, &str> =
        snapshots.iter().map(|info| (info.name.as_str(), info.parent.as_str())).collect();
    let layers: HashSet<&str> =
        snapshots.iter().filter(|info| is_on_volume(info)).map(|info| info.name.as_str()).collect();
    let depends_on = |key: &str| {
        let (mut at, mut steps) = (key, 0);
        // A list that changes while it is read can contain a cycle.
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
        matches!(info.kind(), snapshots::Kind::Active | snapshots::Kind::View) && depends_on(&info.name)
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
