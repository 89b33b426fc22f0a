//! The containerd part of a detach: afterwards nothing in containerd needs a layer of the volume.

use std::collections::HashSet;
use std::path::PathBuf;

use super::dependents::{Consent, Dependent};
use super::error::Error;
use super::{Host, offline};
use crate::caches::attachments::Attachment;
use crate::node::containerd::{self, Client, DependentImage, LostSnapshots};
use crate::node::content_cache;
use crate::volume::seal;
use larder_model::chain::ChainId;
use larder_model::digest::Digest;
use larder_model::job::LayerFormat;
use larder_model::runtime::{Containerd, Runtime};
use larder_model::seal::Content;

/// The content of a volume that is in containerd and has no users.
#[derive(Debug)]
pub(super) struct ContainerdUse<'a> {
    record: &'a Attachment,
    found: Vec<SnapshotterUse>,
}

/// The content of a volume in one snapshotter.
#[derive(Debug)]
struct SnapshotterUse {
    containerd: Containerd,
    /// The snapshots that need the volume; `None` if they cannot be determined.
    lost: Option<LostSnapshots>,
    dependents: Vec<DependentImage>,
}

impl<'a> ContainerdUse<'a> {
    /// Queries containerd, and changes nothing. Fails while containers use the volume.
    pub(super) fn find(
        record: &'a Attachment,
        others: &[Attachment],
        host: &Host,
        consent: Consent,
    ) -> Result<Self, Error> {
        let mut found = Vec::new();
        for containerd in consumers(record, host) {
            match query(containerd, record, others, host) {
                Ok(answer) => found.push(answer),
                Err(Error::Containerd(error)) if is_silent(&error) => {
                    let does_not_run = matches!(error, containerd::Error::Unreachable { .. });
                    let does_without = record.containerd.is_none() || consent.force;
                    if !(does_without || does_not_run && offline::is_unused(record, host)?) {
                        return Err(Error::ContainerdSilent {
                            at: record.at.clone(),
                            reason: error.to_string(),
                        });
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(ContainerdUse { record, found })
    }

    /// Returns the images that need the volume.
    pub(super) fn images(&self) -> Vec<Dependent> {
        self.found.iter().flat_map(|found| named(&found.dependents)).collect()
    }

    /// Removes the images that need the volume, and the records of its preloaded images.
    pub(super) fn release(&self) -> Result<(), Error> {
        for SnapshotterUse { containerd, lost, dependents } in &self.found {
            let work = async |containerd: &Client| {
                containerd.remove_images(dependents).await?;
                if let Some(cache) = &self.record.cache {
                    containerd.forget(cache).await?;
                }
                match lost {
                    Some(lost) => containerd.sweep(lost).await,
                    None => Ok(()),
                }
            };
            containerd::block_on(containerd, work)?;
        }
        Ok(())
    }
}

/// Reports whether containerd, or a snapshotter that it uses, does not answer.
fn is_silent(error: &containerd::Error) -> bool {
    matches!(error, containerd::Error::Unreachable { .. } | containerd::Error::SnapshotterDown { .. })
}

/// Returns the connection to containerd for each snapshotter that can have layers of the volume. Larder's
/// snapshotter serves the layers of every volume, so containerd can have them even if it was not configured
/// for this volume.
fn consumers(record: &Attachment, host: &Host) -> Vec<Containerd> {
    let ours = |address: PathBuf| Containerd { address, ..Containerd::default() };
    match &record.containerd {
        Some(configured) if configured.snapshotter == Containerd::EROFS => {
            vec![configured.clone(), ours(configured.address.clone())]
        }
        Some(configured) => vec![configured.clone()],
        None => Some(host.path(Containerd::ADDRESS))
            .filter(|address| address.exists())
            .map(ours)
            .into_iter()
            .collect(),
    }
}

fn query(
    containerd: Containerd,
    record: &Attachment,
    others: &[Attachment],
    host: &Host,
) -> Result<SnapshotterUse, Error> {
    let content = seal::read(&record.at).ok().map(|sealed| sealed.content);
    // A volume that is not mounted has no users.
    if let Some(content) = &content {
        refuse_if_used(&containerd, content, others)?;
    }
    let linked = match content {
        None if containerd.snapshotter == Containerd::EROFS => {
            content_cache::layers_of(&host.content_cache, &record.at)?
        }
        _ => Vec::new(),
    };
    let Some(lost) = lost(&containerd, record, content.as_ref(), linked, others) else {
        containerd::block_on(&containerd, Client::version)?;
        return Ok(SnapshotterUse { containerd, lost: None, dependents: Vec::new() });
    };
    let cache = record.cache.as_ref();
    let dependents =
        containerd::block_on(&containerd, async |containerd| containerd.images_on(&lost, cache).await)?;
    Ok(SnapshotterUse { containerd, lost: Some(lost), dependents })
}

/// Fails while containers use layers that no other volume has.
fn refuse_if_used(containerd: &Containerd, content: &Content, others: &[Attachment]) -> Result<(), Error> {
    // For directories, an overlay can use the same layer on another volume. Mounted EROFS images keep the
    // file on this volume open.
    let others = if content.layer_format == LayerFormat::Overlay { others } else { &[] };
    let elsewhere: HashSet<ChainId> = contents(others.iter())
        .flat_map(|content| content.layers.into_iter().map(|layer| layer.chain_id))
        .collect();
    let mut content = content.clone();
    content.layers.retain(|layer| !elsewhere.contains(&layer.chain_id));
    match containerd::block_on(containerd, async |containerd| containerd.refuse_if_used(&content).await) {
        Err(containerd::Error::NoSnapshotter(_)) => Ok(()),
        other => Ok(other?),
    }
}

/// Returns the snapshots that containerd loses without the volume; `None` if they cannot be determined.
/// `content` is `None` if the volume is missing, for example because its disk was lost. Its `linked` layers
/// are still known then.
fn lost(
    containerd: &Containerd,
    record: &Attachment,
    content: Option<&Content>,
    linked: Vec<Digest>,
    others: &[Attachment],
) -> Option<LostSnapshots> {
    let layers = |content: Content| content.layers.into_iter();
    if containerd.snapshotter == Containerd::EROFS {
        let elsewhere: HashSet<Digest> = contents(others.iter().filter(|other| content_cache::has(other)))
            .flat_map(|content| layers(content).map(|layer| layer.diff_id))
            .collect();
        let layers = content.into_iter().flat_map(|content| &content.layers);
        let of_it = layers.map(|layer| layer.diff_id.clone()).chain(linked);
        return Some(LostSnapshots::Linked(of_it.filter(|diff_id| !elsewhere.contains(diff_id)).collect()));
    }
    let has_it = |other: &Attachment| {
        other.containerd.as_ref().is_some_and(|other| other.snapshotter == containerd.snapshotter)
    };
    // The snapshots of a snapshotter that the operator configured are kept.
    if record.containerd.as_ref() == Some(containerd) && !others.iter().any(has_it) {
        return Some(LostSnapshots::All);
    }
    let there: Vec<Content> = contents(others.iter()).collect();
    let are_all_there = there.len() == others.len();
    let elsewhere: HashSet<ChainId> =
        there.into_iter().flat_map(|content| layers(content).map(|layer| layer.chain_id)).collect();
    match content {
        Some(content) => {
            let of_it = content.layers.iter().map(|layer| layer.chain_id.clone());
            Some(LostSnapshots::FromVolumes(of_it.filter(|chain| !elsewhere.contains(chain)).collect()))
        }
        None => are_all_there.then_some(LostSnapshots::AllFromVolumesBut(elsewhere)),
    }
}

/// Returns the content of the volumes that are mounted.
fn contents<'a>(records: impl Iterator<Item = &'a Attachment>) -> impl Iterator<Item = Content> {
    records.filter_map(|record| Some(seal::read(&record.at).ok()?.content))
}

/// Returns one name for each image: containerd has a record for its tag, its digests and its ID.
fn named(dependents: &[DependentImage]) -> Vec<Dependent> {
    let is_same = |one: &DependentImage, other: &DependentImage| {
        one.namespace == other.namespace && one.target == other.target
    };
    let rank = |name: &str| (name.starts_with("sha256:"), name.contains('@'));
    let shown = dependents.iter().filter(|one| {
        let best = dependents.iter().filter(|other| is_same(one, other)).map(|other| rank(&other.name)).min();
        best == Some(rank(&one.name))
    });
    shown
        .map(|one| Dependent {
            runtime: Runtime::Containerd,
            image: one.name.clone(),
            place: format!("namespace {}", one.namespace),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_named_once() {
        let record = |name: &str, target: &str| DependentImage {
            namespace: "k8s.io".into(),
            name: name.into(),
            target: target.into(),
        };
        let all = [
            record("sha256:1", "a"),
            record("r/app@sha256:2", "a"),
            record("r/app:1", "a"),
            record("r/app:2", "a"),
            record("sha256:3", "b"),
        ];
        let names: Vec<String> = named(&all).into_iter().map(|image| image.image).collect();
        assert_eq!(names, ["r/app:1", "r/app:2", "sha256:3"]);
    }
}
