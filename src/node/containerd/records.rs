//! The image records, and the report on each of them.

use std::collections::HashMap;
use std::fmt;

use serde::Serialize;
use tonic::Code;

use super::call::{Call, Session};
use super::documents::PreloadImage;
use super::{Client, Error};
use crate::node::grpc::{self, Channel};
use larder_containerd_api::services::images::v1 as api;
use larder_containerd_api::services::images::v1::images_client::ImagesClient;
use larder_containerd_api::types::Descriptor;
use larder_model::digest::Digest;
use larder_model::escape::escape;

/// Prefix of the label of a record that was made for a cache; the digest of the cache follows. The value is
/// the name of the record, because clients copy the labels when they give an image another name.
const CACHE: &str = "larder.dev/cache.";
/// The label with the image of a record: the digest of its config.
const IMAGE: &str = "larder.dev/image";
/// The label of images that CRI manages (containerd, internal/cri/labels).
const MANAGED: (&str, &str) = ("io.cri-containerd.image", "managed");
/// The label of images that kubelets do not remove when disks are full (containerd 1.7 and newer).
const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");

/// The result for one name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Outcome {
    /// The record was created.
    #[serde(rename = "registered")]
    Made,
    /// A record that Larder made already existed.
    #[serde(rename = "already_registered")]
    Kept,
    /// A record that Larder made for another cache and another image was replaced.
    Replaced,
    /// Another client has made the same record.
    #[serde(rename = "registered_by_another_client")]
    Known,
    /// Another client has made a record of another image, which is kept.
    Skipped {
        /// The digest that the record points to.
        target: String,
    },
    /// The record was removed.
    Removed,
    /// The record is kept, because other caches have the image, or because it was pulled under another name.
    #[serde(rename = "kept")]
    Left,
}

/// A name of an image in containerd, and the result for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Record {
    /// The name of the image.
    pub name: String,
    /// The result for this name.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// The report of a preload or its removal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The results, one for each name.
    pub records: Vec<Record>,
}

impl Report {
    /// Returns the names that could not be registered, because they belong to another image.
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
            Outcome::Made => write!(f, "{name}: registered"),
            Outcome::Kept => write!(f, "{name}: already registered"),
            Outcome::Replaced => write!(f, "{name}: replaced, it was an image of another cache"),
            Outcome::Known => write!(f, "{name}: already registered by another client"),
            Outcome::Skipped { target } => {
                write!(
                    f,
                    "{name}: skipped, because another client registered another image: {}",
                    escape(target)
                )
            }
            Outcome::Removed => write!(f, "{name}: removed"),
            Outcome::Left => {
                write!(f, "{name}: kept, because it is still in use for other caches or pulled images")
            }
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

/// Returns the labels of the caches that a record was made for.
fn caches(image: &api::Image) -> impl Iterator<Item = &str> {
    let ours = image.labels.iter().filter(|(key, value)| key.starts_with(CACHE) && **value == image.name);
    ours.map(|(key, _)| key.as_str())
}

/// Reports whether a record was made for `cache`.
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
    /// Registers an image under one of its names.
    pub(super) async fn name(
        &self,
        image: &PreloadImage,
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
        let call = Call { doing: "creating the image", what: name };
        let request = api::CreateImageRequest { image: Some(record.clone()), ..Default::default() };
        match self.attempt(request, async |request| client.create(request).await).await {
            Ok(_) => return Ok(Outcome::Made),
            Err(failure) if failure.is(Code::AlreadyExists) => {}
            Err(failure) => return Err(self.failed(&call, &failure)),
        }
        let request = api::GetImageRequest { name: name.to_owned() };
        let found = self.send(call, request, async |request| client.get(request).await).await?;
        let found = found.image.unwrap_or_default();
        // If the name is the ID, it is the same image, even if it was found by another manifest or index.
        let same = target(&found) == stands_for.digest || name == image.id;
        let (update_mask, outcome) = match (is_ours(&found), same) {
            (false, true) => return Ok(Outcome::Known),
            (false, false) => return Ok(Outcome::Skipped { target: target(&found).to_owned() }),
            (true, true) if is_of(&found, cache) => return Ok(Outcome::Kept),
            (true, true) => (mask(&labels.map(|(key, _)| key)), Outcome::Kept),
            // The image of the other cache loses this name.
            (true, false) => (None, Outcome::Replaced),
        };
        let request = api::UpdateImageRequest { image: Some(record), update_mask, ..Default::default() };
        let call = Call { doing: "updating the image", what: name };
        self.send(call, request, async |request| client.update(request).await).await?;
        Ok(outcome)
    }

    /// Lists all image records of the namespace.
    pub(super) async fn records(&self) -> Result<Vec<api::Image>, Error> {
        let mut client = self.containerd.images();
        let call = Call { doing: "listing", what: "images" };
        let request = api::ListImagesRequest::default();
        Ok(self.send(call, request, async |request| client.list(request).await).await?.images)
    }

    /// Removes the label of `cache` from a record that is still needed. Other caches, or records of other
    /// clients in `all` with the same image, can need it. Returns whether the record is kept.
    pub(super) async fn leave(
        &self,
        image: &api::Image,
        cache: &Digest,
        all: &[api::Image],
    ) -> Result<bool, Error> {
        let ours = label(cache);
        let has_other_caches = caches(image).any(|key| key != ours);
        // CRI creates the record of an image's ID once, and uses it for all its names.
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

    /// Removes a record. With `collect`, also waits until garbage collection has removed everything that only
    /// this record needed.
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
