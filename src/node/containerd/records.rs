//! Records of images, and what was done about each.

use std::collections::HashMap;
use std::fmt;

use tonic::Code;

use super::call::{Call, Session};
use super::documents::Known;
use super::{Client, Error};
use crate::node::grpc::{self, Channel};
use larder_containerd_api::services::images::v1 as api;
use larder_containerd_api::services::images::v1::images_client::ImagesClient;
use larder_containerd_api::types::Descriptor;
use larder_model::digest::Digest;
use larder_model::escape::escape;

/// In front of the digest of a cache: the label which says that a record was made of it. Its value is the name of the record,
/// for who gives an image another name copies its labels.
const CACHE: &str = "larder.dev/cache.";
/// The label that says of which image a record is: the digest of its config.
const IMAGE: &str = "larder.dev/image";
/// The label of images that CRI has to do with (containerd, internal/cri/labels).
const MANAGED: (&str, &str) = ("io.cri-containerd.image", "managed");
/// The label of images that kubelets do not remove when disks are full (containerd 1.7 and newer).
const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");

/// What became of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A record was made.
    Made,
    /// A record of ours was there.
    Kept,
    /// A record of ours was of another cache and another image.
    Replaced,
    /// Somebody else made the same record.
    Known,
    /// Somebody else made a record of another image, which stays.
    Skipped {
        /// The digest for which it stands.
        target: String,
    },
    /// A record was removed.
    Removed,
    /// A record stays, because other caches have the image, or because it was pulled under another name.
    Left,
}

/// A name of an image in containerd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The name.
    pub name: String,
    /// What became of it.
    pub outcome: Outcome,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Name by name.
    pub records: Vec<Record>,
}

impl Report {
    /// Names by which images of the cache are not known.
    pub fn skipped(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(|record| matches!(record.outcome, Outcome::Skipped { .. }))
    }

    pub(super) fn add(&mut self, name: &str, outcome: Outcome) {
        self.records.push(Record { name: name.to_owned(), outcome });
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = escape(&self.name);
        match &self.outcome {
            Outcome::Made => write!(f, "{name}: made known"),
            Outcome::Kept => write!(f, "{name}: known already"),
            Outcome::Replaced => write!(f, "{name}: was an image of another cache, and is of this one now"),
            Outcome::Known => write!(f, "{name}: known already, by somebody else"),
            Outcome::Skipped { target } => {
                write!(
                    f,
                    "{name}: skipped, for it is another image that somebody else made: {}",
                    escape(target)
                )
            }
            Outcome::Removed => write!(f, "{name}: forgotten"),
            Outcome::Left => write!(f, "{name}: stays, for others have the image, too"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.records.iter().try_for_each(|record| writeln!(f, "{record}"))
    }
}

fn label(cache: &Digest) -> String {
    format!("{CACHE}{}", cache.hex())
}

/// The labels of caches of which a record was made.
fn caches(image: &api::Image) -> impl Iterator<Item = &str> {
    let ours = image.labels.iter().filter(|(key, value)| key.starts_with(CACHE) && **value == image.name);
    ours.map(|(key, _)| key.as_str())
}

/// Whether a record was made of `cache`.
pub(super) fn is_of(image: &api::Image, cache: &Digest) -> bool {
    let key = label(cache);
    caches(image).any(|ours| ours == key)
}

fn is_ours(image: &api::Image) -> bool {
    caches(image).next().is_some()
}

fn target(image: &api::Image) -> &str {
    image.target.as_ref().map(|target| target.digest.as_str()).unwrap_or_default()
}

fn mask(keys: &[&str]) -> Option<prost_types::FieldMask> {
    Some(prost_types::FieldMask { paths: keys.iter().map(|key| format!("labels.{key}")).collect() })
}

impl Client {
    fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::with_origin(self.channel(), grpc::origin())
    }
}

impl Session<'_> {
    /// Gives an image one of its names.
    pub(super) async fn name(
        &self,
        image: &Known,
        name: &str,
        stands_for: &Descriptor,
        cache: &Digest,
    ) -> Result<Outcome, Error> {
        let mut client = self.containerd.images();
        let ours = label(cache);
        let labels = [(ours.as_str(), name), (IMAGE, image.id.as_str()), MANAGED, PINNED];
        let record = api::Image {
            name: name.to_owned(),
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            target: Some(stands_for.clone()),
            ..Default::default()
        };
        let call = Call { doing: "making the image", what: name };
        let request = api::CreateImageRequest { image: Some(record.clone()), ..Default::default() };
        match self.attempt(request, async |request| client.create(request).await).await {
            Ok(_) => return Ok(Outcome::Made),
            Err(failure) if failure.is(Code::AlreadyExists) => {}
            Err(failure) => return Err(self.failed(&call, &failure)),
        }
        let request = api::GetImageRequest { name: name.to_owned() };
        let found = self.ask(call, request, async |request| client.get(request).await).await?;
        let found = found.image.unwrap_or_default();
        // By its ID it is the same image, whichever manifest or index it was found by.
        let same = target(&found) == stands_for.digest || name == image.id;
        let (update_mask, outcome) = match (is_ours(&found), same) {
            (false, true) => return Ok(Outcome::Known),
            (false, false) => return Ok(Outcome::Skipped { target: target(&found).to_owned() }),
            (true, true) if is_of(&found, cache) => return Ok(Outcome::Kept),
            (true, true) => (mask(&labels.map(|(key, _)| key)), Outcome::Kept),
            // What other caches called so is not known by that name any more.
            (true, false) => (None, Outcome::Replaced),
        };
        let request = api::UpdateImageRequest { image: Some(record), update_mask, ..Default::default() };
        let call = Call { doing: "updating the image", what: name };
        self.ask(call, request, async |request| client.update(request).await).await?;
        Ok(outcome)
    }

    /// All records.
    pub(super) async fn records(&self) -> Result<Vec<api::Image>, Error> {
        let mut client = self.containerd.images();
        let call = Call { doing: "listing", what: "images" };
        let request = api::ListImagesRequest::default();
        Ok(self.ask(call, request, async |request| client.list(request).await).await?.images)
    }

    /// Takes the label of `cache` from a record that others need: other caches, or those who made the image known by other
    /// names, among `all`. Whether it stays.
    pub(super) async fn leave(
        &self,
        image: &api::Image,
        cache: &Digest,
        all: &[api::Image],
    ) -> Result<bool, Error> {
        let ours = label(cache);
        let has_other_caches = caches(image).any(|key| key != ours);
        // CRI makes the record of an image's ID once, and relies on it for all its names.
        let of_it = |other: &&api::Image| other.labels.get(IMAGE) == Some(&image.name);
        let targets: Vec<&str> = all.iter().filter(of_it).map(target).collect();
        let pulled = all.iter().any(|other| !is_ours(other) && targets.contains(&target(other)));
        let keys: &[&str] = match (has_other_caches, pulled) {
            (true, _) => &[&ours],
            (false, true) => &[&ours, PINNED.0],
            (false, false) => return Ok(false),
        };
        let mut client = self.containerd.images();
        let record = api::Image {
            name: image.name.clone(),
            // A label without a value is removed.
            labels: HashMap::new(),
            target: image.target.clone(),
            ..Default::default()
        };
        let request =
            api::UpdateImageRequest { image: Some(record), update_mask: mask(keys), ..Default::default() };
        let call = Call { doing: "updating the image", what: &image.name };
        match self.attempt(request, async |request| client.update(request).await).await {
            Err(failure) if !failure.is(Code::NotFound) => Err(self.failed(&call, &failure)),
            _ => Ok(true),
        }
    }

    /// Removes a record. `collect`: and waits until nothing is left of what only this one needed.
    pub(super) async fn remove(&self, image: &api::Image, collect: bool) -> Result<(), Error> {
        let mut client = self.containerd.images();
        let request =
            api::DeleteImageRequest { name: image.name.clone(), sync: collect, ..Default::default() };
        let call = Call { doing: "removing the image", what: &image.name };
        match self.attempt(request, async |request| client.delete(request).await).await {
            Err(failure) if !failure.is(Code::NotFound) => Err(self.failed(&call, &failure)),
            _ => Ok(()),
        }
    }
}
