//! Images from a file instead of a registry: OCI image layouts, tars of them, archives of `docker save`, and
//! skopeo's `dir:`.
//!
//! ```text
//! Input (opened) ─► Archive::index ─► images by name, documents and blobs by digest
//! ```
//!
//! An archive is untrusted input, as a registry is. It is opened before a builder confines itself, and parsed
//! afterwards. A tar is read once, header by header; file contents are read in place, by offset. No name
//! leads out of the archive: links of a layout are not followed, and links of a tar lead only to its own
//! members. The reader of a blob verifies its digest when it uses the blob. The size of the index is limited.

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

/// Format of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// An OCI image layout: a directory
    OciLayout,
    /// A tar of an OCI image layout
    OciArchive,
    /// The output of docker save
    DockerArchive,
    /// A directory of skopeo copy (dir:) or podman save (docker-dir)
    Dir,
}

/// An opened archive and the list of its images.
#[derive(Debug)]
pub struct Archive {
    /// Name of the archive in messages.
    shown: String,
    format: Format,
    store: Store,
    entries: Vec<Entry>,
    /// Documents that the archive lacks and that were generated, by digest.
    generated: HashMap<Digest, Vec<u8>>,
    /// Paths of contents that are not stored under their digests.
    paths: HashMap<Digest, String>,
}

/// An image that the archive lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name of the image, if it is a complete reference.
    pub name: Option<ImageReference>,
    /// Media type of its manifest or index, as listed.
    pub media_type: String,
    /// Digest of the manifest or index.
    pub digest: Digest,
    /// Size of the manifest or index, bytes.
    pub size: u64,
    /// The platform given in the list.
    pub platform: Option<Platform>,
}

impl Archive {
    /// Indexes `input`. The format is detected; `given` restricts it.
    ///
    /// # Errors
    /// The archive is of an unknown or another format, is malformed, or cannot be read.
    pub fn index(input: Input, given: Option<Format>) -> Result<Self, Error> {
        let (shown, store) = input.into_store()?;
        let has = |path: &str| store.has(path);
        let found = match &store {
            Store::Layout(_) if has("oci-layout")? => Some(Format::OciLayout),
            Store::Layout(_) if dir::is_directory_transport(&store)? => Some(Format::Dir),
            Store::Tar { .. } if has("oci-layout")? && has("index.json")? => Some(Format::OciArchive),
            Store::Tar { .. } if has("manifest.json")? => Some(Format::DockerArchive),
            _ => None,
        };
        // Archives of docker 25 and later have both formats. Unless the user names a format, the images of
        // both lists are used.
        let has_list = matches!(store, Store::Tar { .. }) && has("manifest.json")?;
        let is_docker_too = given == Some(Format::DockerArchive) && has_list;
        let format = match (found, given) {
            (Some(found), None) => found,
            (Some(found), Some(given)) if found == given || is_docker_too => given,
            _ => return Err(Error::Unknown { path: shown, wanted: given }),
        };
        let (generated, paths) = (HashMap::new(), HashMap::new());
        let mut archive = Archive { shown, format, store, entries: Vec::new(), generated, paths };
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

    /// Returns the format of the archive.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Returns the tar, decompressed; `None` for a directory.
    pub fn tar(&self) -> Option<&File> {
        match &self.store {
            Store::Tar { file, .. } => Some(file),
            Store::Layout(_) => None,
        }
    }

    /// Returns the names of the images, without duplicates, in the order of the archive.
    pub fn names(&self) -> Vec<ImageReference> {
        let mut names: Vec<ImageReference> = Vec::new();
        for name in self.entries.iter().filter_map(|entry| entry.name.as_ref()) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        names
    }

    /// Returns the image called `reference`. If several images have that name, the one that fits `platform`
    /// best is returned. If the archive contains a single image without a name, that image matches any
    /// reference.
    ///
    /// # Errors
    /// The archive contains no such image.
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

    /// Describes the images of the archive for messages.
    fn listed(&self) -> String {
        const MAX_LISTED: usize = 20;
        let names = self.names();
        let unnamed = self.entries.iter().filter(|entry| entry.name.is_none()).count();
        let mut parts: Vec<String> = names.iter().take(MAX_LISTED).map(ToString::to_string).collect();
        if names.len() > MAX_LISTED {
            parts.push(format!("{} more", names.len() - MAX_LISTED));
        }
        match unnamed {
            0 if parts.is_empty() => return "no image".to_owned(),
            0 => {}
            1 => parts.push("one image without a name".to_owned()),
            unnamed => parts.push(format!("{unnamed} images without a name")),
        }
        parts.join(", ")
    }

    /// Returns the error for an archive whose images have no names.
    pub fn unnamed(&self) -> Error {
        Error::Unnamed { path: self.shown.clone(), have: self.listed() }
    }

    /// Reads a manifest, index or config of at most `limit` bytes and verifies its digest.
    ///
    /// # Errors
    /// The archive does not contain it, its digest is another, or it is too large.
    pub fn document(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, Error> {
        let bytes = match self.generated.get(digest) {
            Some(bytes) => bytes.clone(),
            None => self.blob(digest)?.read(limit)?,
        };
        let found = Hasher::digest_of(digest.algorithm(), &bytes);
        if found == *digest {
            return Ok(bytes);
        }
        Err(Error::Digest { path: self.shown.clone(), want: digest.clone(), found })
    }

    /// Opens the content that is stored under this digest. The caller verifies the digest.
    ///
    /// # Errors
    /// The archive does not contain it or cannot be read.
    pub fn blob(&self, digest: &Digest) -> Result<Blob, Error> {
        let paths = match (self.paths.get(digest), self.format) {
            (Some(path), _) => vec![path.clone()],
            (None, Format::Dir) => dir::candidate_paths(digest).into(),
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
