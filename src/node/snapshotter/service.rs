//! The gRPC service: converts between containerd's API types and internal types.

use std::sync::Arc;

use futures_util::stream::{self, BoxStream};
use prost::Message as _;
use prost_types::Timestamp;
use tonic::{Code, Request, Response, Status};

use super::filter::Filters;
use super::operations::Change;
use super::{Error, Info, Kind, Mount, Snapshotter};
use larder_containerd_api::services::snapshots::v1 as api;
use larder_containerd_api::types;
use larder_model::class::Class;
use larder_model::escape::escape;

/// Maximum number of snapshots in one message of a list.
const MAX_INFOS: usize = 100;
/// Size at which a message of a list is full, bytes. With one more snapshot it stays below the limit of
/// clients (4 MiB).
const MAX_BYTES: usize = 1 << 20;

/// The gRPC service of the socket.
#[derive(Clone, Debug)]
pub(super) struct Service(pub(super) Arc<Snapshotter>);

type Answer<T> = Result<Response<T>, Status>;

impl Service {
    /// Runs `work` on a blocking thread. It completes even if the client has disconnected.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Snapshotter) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Status> {
        let snapshotter = Arc::clone(&self.0);
        let done = crate::blocking::spawn(move || work(&snapshotter)).await;
        done.unwrap_or_else(|e| Err(Error::Thread(e.to_string()))).map_err(status)
    }

    async fn prepare(
        &self,
        kind: Kind,
        key: String,
        parent: String,
        labels: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Vec<types::Mount>, Status> {
        let labels = labels.into_iter().collect();
        let mounts = self.run(move |snapshotter| snapshotter.prepare(kind, &key, &parent, labels)).await?;
        Ok(mounts.into_iter().map(mount).collect())
    }
}

#[tonic::async_trait]
impl api::snapshots_server::Snapshots for Service {
    type ListStream = BoxStream<'static, Result<api::ListSnapshotsResponse, Status>>;

    async fn prepare(
        &self,
        request: Request<api::PrepareSnapshotRequest>,
    ) -> Answer<api::PrepareSnapshotResponse> {
        let api::PrepareSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let mounts = self.prepare(Kind::Active, key, parent, labels).await?;
        Ok(Response::new(api::PrepareSnapshotResponse { mounts }))
    }

    async fn view(&self, request: Request<api::ViewSnapshotRequest>) -> Answer<api::ViewSnapshotResponse> {
        let api::ViewSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let mounts = self.prepare(Kind::View, key, parent, labels).await?;
        Ok(Response::new(api::ViewSnapshotResponse { mounts }))
    }

    async fn mounts(&self, request: Request<api::MountsRequest>) -> Answer<api::MountsResponse> {
        let key = request.into_inner().key;
        let mounts = self.run(move |snapshotter| snapshotter.mounts(&key)).await?;
        Ok(Response::new(api::MountsResponse { mounts: mounts.into_iter().map(mount).collect() }))
    }

    async fn commit(&self, request: Request<api::CommitSnapshotRequest>) -> Answer<()> {
        let api::CommitSnapshotRequest { name, key, labels, .. } = request.into_inner();
        let labels = labels.into_iter().collect();
        self.run(move |snapshotter| snapshotter.commit(&name, &key, labels)).await.map(Response::new)
    }

    async fn remove(&self, request: Request<api::RemoveSnapshotRequest>) -> Answer<()> {
        let key = request.into_inner().key;
        self.run(move |snapshotter| snapshotter.remove(&key)).await.map(Response::new)
    }

    async fn stat(&self, request: Request<api::StatSnapshotRequest>) -> Answer<api::StatSnapshotResponse> {
        let key = request.into_inner().key;
        let found = self.run(move |snapshotter| snapshotter.stat(&key)).await?;
        Ok(Response::new(api::StatSnapshotResponse { info: Some(info(found)) }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateSnapshotRequest>,
    ) -> Answer<api::UpdateSnapshotResponse> {
        let api::UpdateSnapshotRequest { info: given, update_mask, .. } = request.into_inner();
        let given = given.ok_or_else(|| Status::invalid_argument("the snapshot to update is missing"))?;
        let changes = changes(update_mask.map(|mask| mask.paths).unwrap_or_default()).map_err(status)?;
        let labels = given.labels.into_iter().collect();
        let found = self.run(move |snapshotter| snapshotter.update(&given.name, &labels, &changes)).await?;
        Ok(Response::new(api::UpdateSnapshotResponse { info: Some(info(found)) }))
    }

    async fn list(&self, request: Request<api::ListSnapshotsRequest>) -> Answer<Self::ListStream> {
        let filters = Filters::parse(&request.into_inner().filters).map_err(status)?;
        let found = self.run(move |snapshotter| snapshotter.list(&filters)).await?;
        let messages = in_messages(found.into_iter().map(info)).into_iter();
        let stream = messages.map(|info| Ok(api::ListSnapshotsResponse { info }));
        Ok(Response::new(Box::pin(stream::iter(stream.collect::<Vec<_>>()))))
    }

    async fn usage(&self, request: Request<api::UsageRequest>) -> Answer<api::UsageResponse> {
        let key = request.into_inner().key;
        let usage = self.run(move |snapshotter| snapshotter.usage(&key)).await?;
        let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        Ok(Response::new(api::UsageResponse { size: count(usage.size), inodes: count(usage.inodes) }))
    }

    async fn cleanup(&self, _: Request<api::CleanupRequest>) -> Answer<()> {
        self.run(Snapshotter::cleanup).await.map(Response::new)
    }
}

fn in_messages(infos: impl Iterator<Item = api::Info>) -> Vec<Vec<api::Info>> {
    let (mut messages, mut bytes) = (vec![Vec::new()], 0);
    for info in infos {
        let full = messages.last().is_none_or(|last| last.len() >= MAX_INFOS) || bytes >= MAX_BYTES;
        if full {
            messages.push(Vec::new());
            bytes = 0;
        }
        bytes += info.encoded_len();
        if let Some(last) = messages.last_mut() {
            last.push(info);
        }
    }
    messages
}

/// Converts an update mask. An empty mask means all fields that can be changed.
fn changes(paths: Vec<String>) -> Result<Vec<Change>, Error> {
    if paths.is_empty() {
        return Ok(vec![Change::Labels]);
    }
    let change = |path: String| match path.strip_prefix("labels") {
        Some("") => Ok(Change::Labels),
        Some(key) if key.starts_with('.') && key.len() > 1 => Ok(Change::Label(key[1..].to_owned())),
        _ => Err(Error::Invalid(format!(
            "the field {path:?} of a snapshot cannot be updated, only labels can"
        ))),
    };
    paths.into_iter().map(change).collect()
}

fn info(info: Info) -> api::Info {
    let kind = match info.kind {
        Kind::View => api::Kind::View,
        Kind::Active => api::Kind::Active,
        Kind::Committed => api::Kind::Committed,
    };
    let time = |time: chrono::DateTime<chrono::Utc>| Timestamp {
        seconds: time.timestamp(),
        // The value is below two billion, including leap seconds.
        nanos: i32::try_from(time.timestamp_subsec_nanos()).unwrap_or_default(),
    };
    api::Info {
        name: info.name,
        parent: info.parent,
        kind: kind.into(),
        created_at: Some(time(info.created)),
        updated_at: Some(time(info.updated)),
        labels: info.labels.into_iter().collect(),
    }
}

fn mount(mount: Mount) -> types::Mount {
    types::Mount {
        r#type: mount.kind.to_owned(),
        source: mount.source,
        target: String::new(),
        options: mount.options,
    }
}

/// Converts an error. containerd restores its own errors from the code (package errdefs).
fn status(error: Error) -> Status {
    let code = match &error {
        Error::Invalid(_) => Code::InvalidArgument,
        Error::NotFound(_) => Code::NotFound,
        Error::Exists(_) => Code::AlreadyExists,
        Error::Precondition(_) => Code::FailedPrecondition,
        Error::Detached(_) => Code::Unavailable,
        Error::Layer(_) | Error::Store { .. } | Error::Io { .. } if error.class() == Class::NoSpace => {
            Code::ResourceExhausted
        }
        Error::Layer(_)
        | Error::Store { .. }
        | Error::Damaged { .. }
        | Error::Io { .. }
        | Error::Thread(_) => {
            tracing::error!(%error, "request failed");
            Code::Internal
        }
    };
    Status::new(code, escape(&error.to_string()).to_string())
}
