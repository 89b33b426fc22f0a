//! Images from a file instead of a registry: OCI image layouts, tars of them, what `docker save` writes, and skopeo's `dir:`.
//!
//! ```text
//! Input (opened) ─► Archive::index ─► images by name, documents and blobs by digest
//! ```
//!
//! An archive comes from strangers as a registry does. It is opened before a builder confines itself and looked into
//! afterwards. A tar is read once, header by header; contents are read where they lie, by offset. Names lead nowhere but
//! into the archive: links of a layout are not followed, those of a tar only to its own members. What has a digest is
//! checked against it when it is used, by who uses it; the index itself is bounded in every direction.

mod dir;
mod docker;
mod error;
mod extent;
mod input;
mod members;
mod oci;
mod store;

use std::collections::HashMap;
use std::fs::File;

use clap::ValueEnum;

pub use error::Error;
pub use input::Input;
pub use store::Blob;

use larder_model::class::Class;
use larder_model::digest::{Digest, Hasher};
use larder_model::platform::Platform;
use larder_model::reference::ImageReference;
use store::Store;

/// What an archive is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// An OCI image layout: a directory
    OciLayout,
    /// A tar of one
    OciArchive,
    /// What docker save writes
    DockerArchive,
    /// What skopeo copy writes to dir:, and podman save as docker-dir
    Dir,
}

/// An archive and what is in it.
#[derive(Debug)]
pub struct Archive {
    /// How messages call it.
    shown: String,
    format: Format,
    store: Store,
    entries: Vec<Entry>,
    /// Documents that are not in the archive as such.
    made: HashMap<Digest, Vec<u8>>,
    /// Where contents lie that are not called by their digests.
    paths: HashMap<Digest, String>,
}

/// An image that the archive lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name, where that is a whole reference.
    pub name: Option<ImageReference>,
    /// Media type of its manifest or index, as listed.
    pub media_type: String,
    /// Digest of that.
    pub digest: Digest,
    /// Its size, bytes.
    pub size: u64,
    /// The platform that the list names.
    pub platform: Option<Platform>,
}

impl Archive {
    /// Looks into `input`, which is of the format that it seems to be, or of none but `given`.
    pub fn index(input: Input, given: Option<Format>) -> Result<Self, Error> {
        let (shown, store) = input.into_store()?;
        let has = |path: &str| store.has(path);
        let found = match &store {
            Store::Layout(_) if has("oci-layout")? => Some(Format::OciLayout),
            Store::Layout(_) if dir::is_one(&store)? => Some(Format::Dir),
            Store::Tar { .. } if has("oci-layout")? && has("index.json")? => Some(Format::OciArchive),
            Store::Tar { .. } if has("manifest.json")? => Some(Format::DockerArchive),
            _ => None,
        };
        // What docker writes since 25 is both. Without the word of the user, the images of both are taken.
        let has_list = matches!(store, Store::Tar { .. }) && has("manifest.json")?;
        let is_docker_too = given == Some(Format::DockerArchive) && has_list;
        let format = match (found, given) {
            (Some(found), None) => found,
            (Some(found), Some(given)) if found == given || is_docker_too => given,
            _ => return Err(Error::Unknown { path: shown, wanted: given }),
        };
        let (made, paths) = (HashMap::new(), HashMap::new());
        let mut archive = Archive { shown, format, store, entries: Vec::new(), made, paths };
        match format {
            Format::OciLayout | Format::OciArchive => archive.entries = oci::entries(&archive.store)?,
            Format::Dir => dir::read(&mut archive)?,
            Format::DockerArchive => {}
        }
        if format == Format::DockerArchive || (given.is_none() && has_list) {
            docker::read(&mut archive)?;
        }
        Ok(archive)
    }

    /// What it is.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The tar, uncompressed as a whole; none of a layout.
    pub fn tar(&self) -> Option<&File> {
        match &self.store {
            Store::Tar { file, .. } => Some(file),
            Store::Layout(_) => None,
        }
    }

    /// The names of its images, each once, in its order.
    pub fn names(&self) -> Vec<ImageReference> {
        let mut names: Vec<ImageReference> = Vec::new();
        for name in self.entries.iter().filter_map(|entry| entry.name.as_ref()) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        names
    }

    /// The image called `reference`. Of several of that name, the one that serves `platform` best. An image without a
    /// name of its own is called what the user likes, where it is the only one.
    pub fn find(&self, reference: &ImageReference, platform: &Platform) -> Result<&Entry, Error> {
        let named = self.entries.iter().filter(|entry| {
            entry
                .name
                .as_ref()
                .is_some_and(|name| (name.name(), name.tag()) == (reference.name(), reference.tag()))
        });
        let preference = |entry: &&Entry| match &entry.platform {
            Some(of_entry) => platform.preference(of_entry).map_or(u64::MAX, u64::from),
            None => u64::MAX - 1,
        };
        if let Some(entry) = named.min_by_key(preference) {
            return Ok(entry);
        }
        match &self.entries[..] {
            [only] if only.name.is_none() => Ok(only),
            _ => Err(Error::NoImage { path: self.shown.clone(), have: self.listed() }),
        }
    }

    /// What the archive has, for a person.
    fn listed(&self) -> String {
        const TOLD: usize = 20;
        let names = self.names();
        let unnamed = self.entries.iter().filter(|entry| entry.name.is_none()).count();
        let mut told: Vec<String> = names.iter().take(TOLD).map(ToString::to_string).collect();
        if names.len() > TOLD {
            told.push(format!("{} more", names.len() - TOLD));
        }
        match unnamed {
            0 if told.is_empty() => return "no image".to_owned(),
            0 => {}
            1 => told.push("one image without a name".to_owned()),
            unnamed => told.push(format!("{unnamed} images without a name")),
        }
        told.join(", ")
    }

    /// The error of an archive that names nothing.
    pub fn unnamed(&self) -> Error {
        Error::Unnamed { path: self.shown.clone(), have: self.listed() }
    }

    /// A manifest, index or config of at most `limit` bytes, which has that digest.
    pub fn document(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, Error> {
        let bytes = match self.made.get(digest) {
            Some(bytes) => bytes.clone(),
            None => self.blob(digest)?.read(limit)?,
        };
        let found = Hasher::digest_of(digest.algorithm(), &bytes);
        if found == *digest {
            return Ok(bytes);
        }
        Err(Error::Digest { path: self.shown.clone(), want: digest.clone(), found })
    }

    /// A content that is called by this digest. Whether it has it is for the reader to see.
    pub fn blob(&self, digest: &Digest) -> Result<Blob, Error> {
        let paths = match (self.paths.get(digest), self.format) {
            (Some(path), _) => vec![path.clone()],
            (None, Format::Dir) => dir::places(digest).into(),
            (None, _) => vec![format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())],
        };
        for path in paths {
            if let Some(blob) = self.store.open(&path)? {
                return Ok(blob);
            }
        }
        Err(Error::Absent { path: self.shown.clone(), digest: digest.clone() })
    }
}

#[cfg(test)]
mod tests;
