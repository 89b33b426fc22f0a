//! Documents of an image on a volume, proven, and what containerd is to be told of them.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use nix::errno::Errno;

use super::Error;
use crate::volume::store;
use larder_containerd_api::types::Descriptor;
use larder_model::chain::ChainId;
use larder_model::digest::{Digest, Hasher};
use larder_model::manifest::{Document, ImageConfig, Index, MAX_BYTES, Manifest};
use larder_model::platform::Platform;
use larder_model::reference::ImageReference;
use larder_model::seal::Image;
use larder_sys::Dir;

/// A document, and the labels that tell garbage collection what it stands on.
#[derive(Debug)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    pub(super) bytes: Vec<u8>,
    pub(super) labels: HashMap<String, String>,
}

/// An image as containerd is to know it.
#[derive(Debug)]
pub(super) struct Known {
    /// Its name on the volume.
    pub(super) reference: String,
    /// What containerd calls it, and what each name stands for: the config's digest first, the tag last, so that who finds the
    /// tag finds all.
    pub(super) names: Vec<(String, Descriptor)>,
    /// Digest of its config: what CRI calls its ID.
    pub(super) id: String,
    /// Its documents, each after those that it names.
    pub(super) blobs: Vec<Blob>,
    /// Its layers, base first.
    pub(super) chain: Vec<ChainId>,
}

/// Reads the documents of volumes.
#[derive(Debug)]
pub(super) struct Documents {
    root: Dir,
    at: String,
}

impl Documents {
    pub(super) fn open(root: &Path) -> Result<Self, Error> {
        let at = root.display().to_string();
        let dir = Dir::open(root).map_err(|source| Error::Read { path: at.clone(), source })?;
        Ok(Documents { root: dir, at })
    }

    /// An image of the volume, whose documents must be of one mind with its seal.
    pub(super) fn image(&self, image: &Image, snapshotter: &str) -> Result<Known, Error> {
        let reference: ImageReference = image
            .reference
            .parse()
            .ok()
            .filter(|reference: &ImageReference| reference.to_string() == image.name)
            .ok_or_else(|| self.damaged(format!("its cache.json calls an image {:?}", image.name)))?;
        let config = self.read(&image.config)?;
        let parsed = ImageConfig::parse(&config)
            .map_err(|e| self.damaged(format!("the config {} of {}: {e}", image.config, image.name)))?;
        let manifest_bytes = self.read(&image.manifest)?;
        let manifest = match Document::parse(&manifest_bytes, None) {
            Ok(Document::Image(manifest))
                if manifest.config.digest == image.config && parsed.check_layers(&manifest).is_ok() =>
            {
                manifest
            }
            _ => return Err(self.damaged(format!("{} is no manifest of {}", image.manifest, image.name))),
        };
        if ChainId::chain(&parsed.diff_ids) != image.chain {
            return Err(self.damaged(format!("its cache.json gives {} other layers", image.name)));
        }
        let top = image.chain.last().map(ToString::to_string).unwrap_or_default();
        let snapshot = HashMap::from([(format!("containerd.io/gc.ref.snapshot.{snapshotter}"), top)]);
        let own = descriptor(&manifest.media_type, &image.manifest, &manifest_bytes);
        let mut target = own.clone();
        let mut blobs = vec![
            Blob { digest: image.config.clone(), bytes: config, labels: snapshot },
            Blob { digest: image.manifest.clone(), bytes: manifest_bytes, labels: layers(&manifest) },
        ];
        if let Some(digest) = &image.index {
            let bytes = self.read(digest)?;
            let Ok(Document::Index(index)) = Document::parse(&bytes, None) else {
                return Err(self.damaged(format!("{digest} is no index of {}", image.name)));
            };
            if !index.manifests.iter().any(|entry| entry.digest == image.manifest) {
                return Err(self.damaged(format!("{digest} does not name the manifest of {}", image.name)));
            }
            if is_chosen(&index, image) {
                target = descriptor(&index.media_type, digest, &bytes);
            }
            blobs.push(Blob { digest: digest.clone(), bytes, labels: manifests(&index) });
        }
        let names = names(&reference, image, &own, &target).ok_or_else(|| {
            self.damaged(format!("{} is another image than {}", image.manifest, image.name))
        })?;
        let (reference, id) = (image.reference.clone(), image.config.to_string());
        Ok(Known { reference, names, id, blobs, chain: image.chain.clone() })
    }

    fn read(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let path = store::blob_path(digest);
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", &path));
        let opened = self.root.open_beneath(dir.as_bytes());
        let bytes = match opened.and_then(|dir| dir.read_file(name.as_bytes(), MAX_BYTES as u64)) {
            Ok(bytes) => bytes,
            Err(source) => {
                // Nothing, a link, a device or a directory in its place, or too large a file.
                let is_other = matches!(
                    source.kind(),
                    io::ErrorKind::NotFound
                        | io::ErrorKind::InvalidInput
                        | io::ErrorKind::NotADirectory
                        | io::ErrorKind::FileTooLarge
                ) || source.raw_os_error().map(Errno::from_raw) == Some(Errno::ELOOP);
                return Err(if is_other {
                    self.damaged(format!("{path} cannot be read: {source}"))
                } else {
                    Error::Read { path, source }
                });
            }
        };
        if Hasher::digest_of(digest.algorithm(), &bytes) != *digest {
            return Err(self.damaged(format!("{path} was changed")));
        }
        Ok(bytes)
    }

    fn damaged(&self, reason: String) -> Error {
        Error::Damaged { at: self.at.clone(), reason }
    }
}

fn descriptor(media_type: &str, digest: &Digest, bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: digest.to_string(),
        size: i64::try_from(bytes.len()).unwrap_or(i64::MAX),
        annotations: HashMap::new(),
    }
}

/// The labels of a manifest, as a pull writes them (containerd, images.ChildGCLabels).
fn layers(manifest: &Manifest) -> HashMap<String, String> {
    let layers = manifest.layers.iter().enumerate();
    layers
        .map(|(number, layer)| (format!("containerd.io/gc.ref.content.l.{number}"), layer.digest.to_string()))
        .chain([("containerd.io/gc.ref.content.config".to_owned(), manifest.config.digest.to_string())])
        .collect()
}

/// The labels of an index. The manifests that are not there hurt nobody.
fn manifests(index: &Index) -> HashMap<String, String> {
    let entries = index.manifests.iter().enumerate();
    entries
        .map(|(number, entry)| (format!("containerd.io/gc.ref.content.m.{number}"), entry.digest.to_string()))
        .collect()
}

/// Whether containerd finds the image of the volume by the index. It chooses by its own platform, of which no more than
/// operating system and architecture is known here, and what it chooses otherwise is not there.
fn is_chosen(index: &Index, image: &Image) -> bool {
    let host = Platform::host();
    let fits = |platform: &Option<Platform>| {
        let like = |p: &Platform| p.os == host.os && p.architecture == host.architecture;
        platform.as_ref().is_none_or(like)
    };
    let mut fitting = index.manifests.iter().filter(|entry| fits(&entry.platform));
    fitting.next().is_some_and(|entry| entry.digest == image.manifest) && fitting.next().is_none()
}

/// What CRI calls an image after a pull, and its manifest where it was found by an index. None where the reference names
/// another digest.
fn names(
    reference: &ImageReference,
    image: &Image,
    manifest: &Descriptor,
    target: &Descriptor,
) -> Option<Vec<(String, Descriptor)>> {
    let repository = reference.name();
    let mut names = vec![
        (image.config.to_string(), target.clone()),
        (format!("{repository}@{}", image.manifest), manifest.clone()),
    ];
    names.extend(image.index.as_ref().map(|index| (format!("{repository}@{index}"), target.clone())));
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => {
            (*digest == image.manifest || Some(digest) == image.index.as_ref()).then_some(names)
        }
        (None, tag) => {
            names.push((format!("{repository}:{}", tag.unwrap_or("latest")), target.clone()));
            Some(names)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u8) -> Digest {
        Digest::sha256(&[number])
    }

    fn image(reference: &str, index: Option<u8>) -> Image {
        Image {
            reference: reference.to_owned(),
            name: reference.parse::<ImageReference>().unwrap().to_string(),
            index: index.map(digest),
            manifest: digest(1),
            config: digest(2),
            platform: Platform::host(),
            chain: Vec::new(),
        }
    }

    fn called(reference: &str, index: Option<u8>) -> Option<Vec<String>> {
        let (own, target) = (descriptor("m", &digest(1), b""), descriptor("i", &digest(3), b""));
        let names = names(&reference.parse().unwrap(), &image(reference, index), &own, &target)?;
        assert!(names.iter().all(|(name, of)| (of.media_type == "m") == name.ends_with(digest(1).hex())));
        Some(names.into_iter().map(|(name, _)| name).collect())
    }

    #[test]
    fn as_cri_calls_them() {
        let (id, manifest, index) = (digest(2), digest(1), digest(3));
        let by = |digest: &Digest| format!("docker.io/library/a@{digest}");
        let want = [id.to_string(), by(&manifest), "docker.io/library/a:latest".into()];
        assert_eq!(called("a", None).unwrap(), want);
        let want = [id.to_string(), by(&manifest), by(&index), "docker.io/library/a:1".into()];
        assert_eq!(called("a:1", Some(3)).unwrap(), want);
        // A digest makes a tag a label only.
        assert_eq!(called(&format!("a:1@{index}"), Some(3)).unwrap(), want[..3]);
        assert_eq!(called(&format!("a@{manifest}"), None).unwrap(), want[..2]);
        assert_eq!(called(&format!("a@{}", digest(9)), Some(3)), None);
    }

    #[test]
    fn an_index_that_leaves_no_choice() {
        let host = Platform::host();
        let other = Platform::new("linux", "s390x", "");
        let variant = Platform { variant: "v9".into(), ..host.clone() };
        let entry = |number: u8, platform: Option<&Platform>| larder_model::manifest::Descriptor {
            media_type: String::new(),
            digest: digest(number),
            size: 1,
            urls: Vec::new(),
            platform: platform.cloned(),
        };
        let chosen = |manifests: Vec<_>| {
            is_chosen(
                &Index { media_type: String::new(), manifests, malformed: Vec::new() },
                &image("a", Some(3)),
            )
        };
        assert!(chosen(vec![entry(4, Some(&other)), entry(1, Some(&host))]));
        assert!(chosen(vec![entry(1, None)]));
        assert!(!chosen(vec![entry(1, Some(&other)), entry(4, Some(&host))]));
        assert!(!chosen(vec![entry(1, Some(&host)), entry(4, Some(&variant))]));
        assert!(!chosen(vec![entry(1, Some(&other))]));
    }
}
