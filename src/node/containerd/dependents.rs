//! Finds and removes images that cannot start without layers that are about to be removed.
//!
//! An image needs the blobs and snapshots that garbage collection keeps for it (containerd,
//! docs/garbage-collection.md). These are its target, the references in the labels of blobs, and the snapshot
//! in the label of the config, with all its parents. containerd has no blob of a layer that came from a
//! volume, so it cannot unpack that layer again. An image whose blobs all exist can be unpacked again, and
//! needs no snapshot.

use std::collections::{HashMap, HashSet};

use tonic::{Code, Response};

use super::call::{Call, Session};
use super::records::is_of;
use super::{Client, Error};
use crate::node::grpc;
use crate::node::snapshotter::{ON_VOLUME, YES};
use larder_containerd_api::services::content::v1 as content;
use larder_containerd_api::services::content::v1::content_client::ContentClient;
use larder_containerd_api::services::images::v1 as images;
use larder_containerd_api::services::snapshots::v1 as snapshots;
use larder_containerd_api::services::snapshots::v1::snapshots_client::SnapshotsClient;
use larder_model::chain::ChainId;
use larder_model::digest::Digest;

/// Prefix of the labels of references to blobs. Those to layers continue with `l.` and a number.
const BLOB: &str = "containerd.io/gc.ref.content.";
const LAYER: &str = "containerd.io/gc.ref.content.l.";
/// Prefix of the label of a reference to a snapshot. The name of the snapshotter follows.
const SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.";
/// The label with the diff ID of a snapshot (containerd 2.4 and newer).
const DIFF_ID: &str = "containerd.io/snapshot/diff-id";

/// The snapshots that are about to be removed, with all snapshots that depend on them.
#[derive(Clone, Debug)]
pub enum LostSnapshots {
    /// Layers with these chain IDs that Larder's snapshotter has from a volume.
    FromVolumes(HashSet<ChainId>),
    /// Layers that Larder's snapshotter has from volumes, except those with these chain IDs.
    AllFromVolumesBut(HashSet<ChainId>),
    /// Layers with these diff IDs, which containerd's own EROFS snapshotter has from a volume.
    Linked(HashSet<Digest>),
    /// All snapshots, because containerd's snapshotter is changed.
    All,
}

/// The record of an image that can no longer start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DependentImage {
    /// The containerd namespace of the record.
    pub namespace: String,
    /// The name of the record.
    pub name: String,
    /// The digest that the record points to.
    pub target: String,
}

impl LostSnapshots {
    fn names(&self, info: &snapshots::Info) -> bool {
        let is_in = |layers: &HashSet<ChainId>| layers.iter().any(|chain| chain.to_string() == info.name);
        match self {
            LostSnapshots::FromVolumes(layers) => is_from_volume(info) && is_in(layers),
            LostSnapshots::AllFromVolumesBut(layers) => is_from_volume(info) && !is_in(layers),
            LostSnapshots::Linked(layers) => {
                let diff_id = info.labels.get(DIFF_ID).and_then(|diff_id| diff_id.parse().ok());
                diff_id.is_some_and(|diff_id: Digest| layers.contains(&diff_id))
            }
            LostSnapshots::All => true,
        }
    }

    /// Reports whether the snapshot is a layer on a volume that is removed.
    fn is_on_volume(&self, info: &snapshots::Info) -> bool {
        self.names(info) && (is_from_volume(info) || matches!(self, LostSnapshots::Linked(_)))
    }

    /// Returns the names of the removed snapshots of a namespace, parents first.
    fn among<'a>(&self, snapshots: &'a [snapshots::Info]) -> Vec<&'a str> {
        closure(snapshots, |info| self.names(info))
    }
}

/// Reports whether Larder's snapshotter has the snapshot from a volume.
pub(super) fn is_from_volume(info: &snapshots::Info) -> bool {
    info.labels.get(ON_VOLUME).is_some_and(|value| value == YES)
}

/// Returns the `chosen` committed snapshots and those that depend on them, parents first.
fn closure(snapshots: &[snapshots::Info], chosen: impl Fn(&snapshots::Info) -> bool) -> Vec<&str> {
    let committed = || snapshots.iter().filter(|info| info.kind() == snapshots::Kind::Committed);
    let mut found: Vec<&str> =
        committed().filter(|info| chosen(info)).map(|info| info.name.as_str()).collect();
    let mut known: HashSet<&str> = found.iter().copied().collect();
    loop {
        let above = |info: &&snapshots::Info| {
            known.contains(info.parent.as_str()) && !known.contains(info.name.as_str())
        };
        let more: Vec<&str> = committed().filter(above).map(|info| info.name.as_str()).collect();
        if more.is_empty() {
            break;
        }
        known.extend(&more);
        found.extend(more);
    }
    // The chosen snapshots are in no particular order.
    let parents: HashMap<&str, &str> =
        snapshots.iter().map(|info| (info.name.as_str(), info.parent.as_str())).collect();
    found.sort_by_cached_key(|name| {
        let up = std::iter::successors(parents.get(name), |parent| parents.get(**parent));
        // A list that changes while it is read can contain a cycle.
        up.take(parents.len()).count()
    });
    found
}

impl Client {
    /// Returns the records of images, in all namespaces, that cannot start without the snapshots `going`.
    /// Leaves out the records that were made for `cache`, because [`forget`](Self::forget) removes them.
    ///
    /// # Errors
    /// [`Error`]: containerd or the snapshotter does not answer.
    pub async fn images_on(
        &self,
        lost: &LostSnapshots,
        cache: Option<&Digest>,
    ) -> Result<Vec<DependentImage>, Error> {
        let mut found = Vec::new();
        for namespace in self.namespaces().await? {
            let session = self.session_in(&namespace);
            let Some(snapshots) = session.snapshots(false).await? else { continue };
            let gone: HashSet<&str> = lost.among(&snapshots).into_iter().collect();
            if gone.is_empty() {
                continue;
            }
            let blobs = Blobs::new(session.blobs().await?, &self.snapshotter);
            let ours = |image: &images::Image| {
                namespace == self.namespace && cache.is_some_and(|cache| is_of(image, cache))
            };
            for image in session.records().await? {
                let target = image.target.as_ref().map(|target| target.digest.clone()).unwrap_or_default();
                if !ours(&image) && blobs.needs(&target, &gone) {
                    found.push(DependentImage { namespace: namespace.clone(), name: image.name, target });
                }
            }
        }
        Ok(found)
    }

    /// Removes the records of the given images.
    ///
    /// # Errors
    /// [`Error`]; a repeated call resumes.
    pub async fn remove_images(&self, images: &[DependentImage]) -> Result<(), Error> {
        for (number, dependent) in images.iter().enumerate() {
            let is_last = images.get(number + 1).is_none_or(|next| next.namespace != dependent.namespace);
            let record = images::Image { name: dependent.name.clone(), ..Default::default() };
            self.session_in(&dependent.namespace).remove(&record, is_last).await?;
        }
        Ok(())
    }

    /// Removes the snapshots of the layers `going` that no image needs, in all namespaces. Leases and labels
    /// can keep such snapshots, and images unpacked on them later would fail.
    ///
    /// # Errors
    /// [`Error`]: containerd or the snapshotter does not answer.
    pub async fn sweep(&self, lost: &LostSnapshots) -> Result<(), Error> {
        for namespace in self.namespaces().await? {
            let session = self.session_in(&namespace);
            let Some(snapshots) = session.snapshots(false).await? else { continue };
            let gone = closure(&snapshots, |info| lost.is_on_volume(info));
            if gone.is_empty() {
                continue;
            }
            for name in gone.iter().rev() {
                session.remove_snapshot(name).await?;
            }
            session.collect().await?;
        }
        Ok(())
    }
}

impl Session<'_> {
    /// Lists all blobs of the namespace.
    async fn blobs(&self) -> Result<Vec<content::Info>, Error> {
        let mut client = ContentClient::with_origin(self.containerd.channel(), grpc::origin());
        let call = Call { doing: "listing", what: "blobs" };
        let request = content::ListContentRequest::default();
        self.send(call, request, async |request| {
            let mut stream = client.list(request).await?.into_inner();
            let mut all = Vec::new();
            while let Some(message) = stream.message().await? {
                all.extend(message.info);
            }
            Ok(Response::new(all))
        })
        .await
    }

    async fn remove_snapshot(&self, name: &str) -> Result<(), Error> {
        let mut client = SnapshotsClient::with_origin(self.containerd.channel(), grpc::origin());
        let request = snapshots::RemoveSnapshotRequest {
            snapshotter: self.containerd.snapshotter.clone(),
            key: name.to_owned(),
        };
        let call = Call { doing: "removing the snapshot", what: name };
        match self.attempt(request, async |request| client.remove(request).await).await {
            // It was collected in the meantime, or a container that is not on the volume uses it.
            Err(failure) if failure.is(Code::NotFound) || failure.is(Code::FailedPrecondition) => Ok(()),
            other => other.map_err(|failure| self.failed(&call, &failure)),
        }
    }
}

/// The labels of the blobs in a namespace.
struct Blobs {
    labels: HashMap<String, HashMap<String, String>>,
    snapshot: String,
}

impl Blobs {
    fn new(all: Vec<content::Info>, snapshotter: &str) -> Self {
        let labels = all.into_iter().map(|info| (info.digest, info.labels)).collect();
        Blobs { labels, snapshot: format!("{SNAPSHOT}{snapshotter}") }
    }

    /// Reports whether an image with this target cannot start without the snapshots in `gone`.
    fn needs(&self, target: &str, gone: &HashSet<&str>) -> bool {
        let (mut pending, mut seen) = (vec![target], HashSet::new());
        let (mut needs_snapshot, mut layers) = (false, Vec::new());
        while let Some(digest) = pending.pop() {
            let Some(labels) = self.labels.get(digest).filter(|_| seen.insert(digest)) else { continue };
            for (key, value) in labels {
                if key.starts_with(LAYER) {
                    layers.push(value.as_str());
                } else if key.starts_with(BLOB) {
                    pending.push(value);
                } else if *key == self.snapshot {
                    needs_snapshot |= gone.contains(value.as_str());
                }
            }
        }
        // A manifest can lack the labels of its layers if containerd has discarded their blobs.
        let is_whole = !layers.is_empty() && layers.iter().all(|layer| self.labels.contains_key(*layer));
        needs_snapshot && !is_whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(name: &str, parent: &str, kind: snapshots::Kind, on_volume: bool) -> snapshots::Info {
        let labels = on_volume.then(|| (ON_VOLUME.to_owned(), YES.to_owned()));
        snapshots::Info {
            name: name.into(),
            parent: parent.into(),
            kind: kind.into(),
            labels: labels.into_iter().collect(),
            ..Default::default()
        }
    }

    #[test]
    fn dependents_of_a_layer_are_included() {
        use snapshots::Kind::{Active, Committed};
        let chain = ChainId::base(&Digest::sha256(b"1"));
        let other = ChainId::base(&Digest::sha256(b"2"));
        let (base, unpacked) = (chain.to_string(), other.to_string());
        let all = [
            snapshot("top", "middle", Committed, false),
            snapshot("middle", &base, Committed, false),
            snapshot(&base, "", Committed, true),
            snapshot(&unpacked, "", Committed, false),
            snapshot("container", "top", Active, false),
        ];
        let both = HashSet::from([chain, other]);
        assert_eq!(LostSnapshots::FromVolumes(both.clone()).among(&all), [&base, "middle", "top"]);
        assert!(LostSnapshots::AllFromVolumesBut(both).among(&all).is_empty());
        assert_eq!(LostSnapshots::All.among(&all).len(), 4);
        assert!(LostSnapshots::FromVolumes(HashSet::new()).among(&all).is_empty());
        assert_eq!(LostSnapshots::AllFromVolumesBut(HashSet::new()).among(&all), [&base, "middle", "top"]);
        // The same diff ID on another parent is included too.
        let mut linked = snapshot("linked", "", Committed, false);
        let diff_id = Digest::sha256(b"3");
        linked.labels.insert(DIFF_ID.to_owned(), diff_id.to_string());
        let lost = LostSnapshots::Linked(HashSet::from([diff_id]));
        assert!(lost.among(&all).is_empty());
        assert_eq!(lost.among(&[linked, snapshot("above", "linked", Committed, false)]), ["linked", "above"]);
    }

    #[test]
    fn an_image_with_all_blobs_needs_no_snapshot() {
        let info = |digest: &str, labels: &[(&str, &str)]| content::Info {
            digest: digest.into(),
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            ..Default::default()
        };
        let index = info("index", &[("containerd.io/gc.ref.content.m.0", "manifest")]);
        let manifest = info(
            "manifest",
            &[
                ("containerd.io/gc.ref.content.config", "config"),
                ("containerd.io/gc.ref.content.l.0", "layer"),
            ],
        );
        let discarded = info("manifest", &[("containerd.io/gc.ref.content.config", "config")]);
        let config = info("config", &[("containerd.io/gc.ref.snapshot.larder", "top")]);
        let gone = HashSet::from(["top"]);
        let needs = |blobs: &[&content::Info], snapshotter: &str| {
            let blobs = blobs.iter().map(|info| (*info).clone()).collect();
            Blobs::new(blobs, snapshotter).needs("index", &gone)
        };
        assert!(needs(&[&index, &manifest, &config], "larder"));
        assert!(!needs(&[&index, &manifest, &config, &info("layer", &[])], "larder"));
        assert!(needs(&[&index, &discarded, &config], "larder"));
        assert!(!needs(&[&index, &manifest, &config], "overlayfs"));
    }
}
