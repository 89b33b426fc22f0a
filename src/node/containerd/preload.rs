//! Registers the images of a volume in containerd.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use futures_util::stream;
use tonic::Code;

use super::call::{Call, Session};
use super::documents::{Blob, Documents, PreloadImage};
use super::records::Report;
use super::{Client, Error};
use crate::node::grpc;
use larder_containerd_api::services::content::v1 as content;
use larder_containerd_api::services::content::v1::content_client::ContentClient;
use larder_containerd_api::services::snapshots::v1 as snapshots;
use larder_containerd_api::services::snapshots::v1::snapshots_client::SnapshotsClient;
use larder_model::chain::ChainId;
use larder_model::seal::CacheManifest;

/// The label with the chain ID of a layer.
const TARGET: &str = "containerd.io/snapshot.ref";
/// Size of the pieces of a document in messages, bytes. containerd accepts 16 MiB.
const PIECE: usize = 1 << 20;

impl Client {
    /// Registers the images of the sealed volume at `root`. The volume must be attached, so that the
    /// snapshotter has its layers. A repeated call does nothing.
    ///
    /// Only the seal, which the caller has read, is trusted: all documents are checked against their digests
    /// before the first one is written. Files are read when needed, on the thread of the caller.
    ///
    /// # Errors
    /// [`Error`]; a repeated call resumes.
    pub async fn preload(&self, root: &Path, sealed: &CacheManifest) -> Result<Report, Error> {
        let documents = Documents::open(root)?;
        for image in &sealed.content.images {
            documents.image(image, &self.snapshotter)?;
        }
        let session = self.session().leased().await?;
        let done = session.preload(&documents, sealed).await;
        let released = session.release().await;
        done.and_then(|report| released.map(|()| report))
    }
}

impl Session<'_> {
    async fn preload(&self, documents: &Documents, sealed: &CacheManifest) -> Result<Report, Error> {
        let mut report = Report::default();
        let mut taken = HashSet::new();
        let mut named = HashSet::new();
        for image in &sealed.content.images {
            let known = documents.image(image, &self.containerd.snapshotter)?;
            self.layers(&known, &mut taken).await?;
            for blob in &known.blobs {
                self.write(blob).await?;
            }
            for (name, target) in &known.names {
                // Some names, such as the ID, can be common to several images.
                if named.insert(name.clone()) {
                    report.add(name, self.name(&known, name, target, &sealed.digest).await?);
                }
            }
        }
        Ok(report)
    }

    /// Requests each layer as a pull does before it unpacks the layer.
    async fn layers(&self, image: &PreloadImage, taken: &mut HashSet<ChainId>) -> Result<(), Error> {
        let mut client = SnapshotsClient::with_origin(self.containerd.channel(), grpc::origin());
        let snapshotter = &self.containerd.snapshotter;
        let mut parent = String::new();
        for layer in &image.chain {
            let chain = layer.to_string();
            let below = std::mem::replace(&mut parent, chain.clone());
            if !taken.insert(layer.clone()) {
                continue;
            }
            let key = format!("{} {chain}", self.lease());
            let request = snapshots::PrepareSnapshotRequest {
                snapshotter: snapshotter.clone(),
                key: key.clone(),
                parent: below,
                labels: HashMap::from([(TARGET.to_owned(), chain.clone())]),
            };
            let call = Call { doing: "requesting the layer", what: &chain };
            match self.attempt(request, async |request| client.prepare(request).await).await {
                Err(failure) if failure.is(Code::AlreadyExists) => {}
                Err(failure) if failure.is(Code::Unavailable) => {
                    return Err(self.snapshotter_down(self.failed(&call, &failure)));
                }
                Err(failure) => return Err(self.failed(&call, &failure)),
                Ok(_) => {
                    let request = snapshots::RemoveSnapshotRequest { snapshotter: snapshotter.clone(), key };
                    self.send(call, request, async |request| client.remove(request).await).await?;
                    return Err(Error::NoLayer {
                        snapshotter: snapshotter.clone(),
                        layer: layer.clone(),
                        image: image.reference.clone(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Converts containerd's error for a snapshotter that does not run.
    pub(super) fn snapshotter_down(&self, error: Error) -> Error {
        match error {
            Error::Refused { code: Code::Unavailable, message, .. } => {
                Error::SnapshotterDown { snapshotter: self.containerd.snapshotter.clone(), message }
            }
            other => other,
        }
    }

    /// Writes a document, or only its labels if it exists.
    async fn write(&self, blob: &Blob) -> Result<(), Error> {
        let mut client = ContentClient::with_origin(self.containerd.channel(), grpc::origin());
        let digest = blob.digest.to_string();
        let call = Call { doing: "writing", what: &digest };
        let messages = stream::iter(pieces(blob, &format!("{} {digest}", self.lease())));
        let written = self
            .attempt(messages, async |request| {
                let mut answers = client.write(request).await?.into_inner();
                while answers.message().await?.is_some() {}
                Ok(tonic::Response::new(()))
            })
            .await;
        match written {
            Ok(()) => return Ok(()),
            Err(failure) if failure.is(Code::AlreadyExists) => {}
            Err(failure) => return Err(self.failed(&call, &failure)),
        }
        let paths = blob.labels.keys().map(|key| format!("labels.{key}")).collect();
        let request = content::UpdateRequest {
            info: Some(content::Info {
                digest: digest.clone(),
                labels: blob.labels.clone(),
                ..Default::default()
            }),
            update_mask: Some(prost_types::FieldMask { paths }),
        };
        self.send(call, request, async |request| client.update(request).await).await.map(drop)
    }
}

/// Returns the messages that write a document: its bytes, and a final commit.
fn pieces(blob: &Blob, name: &str) -> Vec<content::WriteContentRequest> {
    let total = i64::try_from(blob.bytes.len()).unwrap_or(i64::MAX);
    let message = |action: content::WriteAction, offset: usize, data: &[u8]| content::WriteContentRequest {
        action: action.into(),
        r#ref: name.to_owned(),
        total,
        expected: blob.digest.to_string(),
        offset: i64::try_from(offset).unwrap_or(i64::MAX),
        data: data.to_vec(),
        labels: HashMap::new(),
    };
    let mut messages = Vec::new();
    let mut offset = 0;
    for piece in blob.bytes.chunks(PIECE) {
        messages.push(message(content::WriteAction::Write, offset, piece));
        offset += piece.len();
    }
    let mut last = message(content::WriteAction::Commit, offset, &[]);
    last.labels.clone_from(&blob.labels);
    messages.push(last);
    messages
}
