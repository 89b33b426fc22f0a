//! Reads and verifies the documents of an image on a volume, and prepares their containerd records.

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

/// A document, and its labels for garbage collection.
#[derive(Debug)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    pub(super) bytes: Vec<u8>,
    pub(super) labels: HashMap<String, String>,
}

/// An image to register in containerd.
#[derive(Debug)]
pub(super) struct PreloadImage {
    /// Image reference as given when the cache was built.
    pub(super) reference: String,
    /// The names of the image, and the target of each. The digest of the config is first and the tag last, so
    /// that a client that finds the tag finds everything.
    pub(super) names: Vec<(String, Descriptor)>,
    /// Digest of the config, which is the image ID in CRI.
    pub(super) id: String,
    /// The documents. Each is after the documents that it references.
    pub(super) blobs: Vec<Blob>,
    /// Chain IDs of the layers, base first.
    pub(super) chain: Vec<ChainId>,
}

/// Reads the documents of a volume.
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

    /// Reads an image of the volume, and checks that its documents match the seal.
    pub(super) fn image(&self, image: &Image, snapshotter: &str) -> Result<PreloadImage, Error> {
        let reference: ImageReference = image
            .reference
            .parse()
            .ok()
            .filter(|reference: &ImageReference| reference.to_string() == image.name)
            .ok_or_else(|| {
                self.damaged(format!("its cache.json has the wrong name for an image: {:?}", image.name))
            })?;
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
            _ => return Err(self.damaged(format!("{} is not a manifest of {}", image.manifest, image.name))),
        };
        if ChainId::chain(&parsed.diff_ids) != image.chain {
            return Err(self.damaged(format!("its cache.json has other layers for {}", image.name)));
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
                return Err(self.damaged(format!("{digest} is not an index of {}", image.name)));
            };
            if !index.manifests.iter().any(|entry| entry.digest == image.manifest) {
                return Err(self.damaged(format!("{digest} does not contain the manifest of {}", image.name)));
            }
            if is_chosen(&index, image) {
                target = descriptor(&index.media_type, digest, &bytes);
            }
            blobs.push(Blob { digest: digest.clone(), bytes, labels: manifests(&index) });
        }
        let names = names(&reference, image, &own, &target)
            .ok_or_else(|| self.damaged(format!("{} is not the image {}", image.manifest, image.name)))?;
        let (reference, id) = (image.reference.clone(), image.config.to_string());
        Ok(PreloadImage { reference, names, id, blobs, chain: image.chain.clone() })
    }

    fn read(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let path = store::blob_path(digest);
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", &path));
        let opened = self.root.open_beneath(dir.as_bytes());
        let bytes = match opened.and_then(|dir| dir.read_file(name.as_bytes(), MAX_BYTES as u64)) {
            Ok(bytes) => bytes,
            Err(source) => {
                // The file is missing, too large, or replaced by a link, device or directory.
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

/// Returns the labels of a manifest, as a pull writes them (containerd, images.ChildGCLabels).
fn layers(manifest: &Manifest) -> HashMap<String, String> {
    let layers = manifest.layers.iter().enumerate();
    layers
        .map(|(number, layer)| (format!("containerd.io/gc.ref.content.l.{number}"), layer.digest.to_string()))
        .chain([("containerd.io/gc.ref.content.config".to_owned(), manifest.config.digest.to_string())])
        .collect()
}

/// Returns the labels of an index. References to missing manifests are harmless.
fn manifests(index: &Index) -> HashMap<String, String> {
    let entries = index.manifests.iter().enumerate();
    entries
        .map(|(number, entry)| (format!("containerd.io/gc.ref.content.m.{number}"), entry.digest.to_string()))
        .collect()
}

/// Reports whether containerd selects the volume's image from the index. It selects by its own platform, of
/// which only the operating system and architecture are known here. Other manifests of the index are not on
/// the volume.
fn is_chosen(index: &Index, image: &Image) -> bool {
    let host = Platform::host();
    let fits = |platform: &Option<Platform>| {
        let like = |p: &Platform| p.os == host.os && p.architecture == host.architecture;
        platform.as_ref().is_none_or(like)
    };
    let mut fitting = index.manifests.iter().filter(|entry| fits(&entry.platform));
    fitting.next().is_some_and(|entry| entry.digest == image.manifest) && fitting.next().is_none()
}

/// Returns the names that CRI gives an image after a pull, and that of the manifest if there is an index.
/// `None` if the reference has another digest.
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
    fn names_match_cri() {
        let (id, manifest, index) = (digest(2), digest(1), digest(3));
        let by = |digest: &Digest| format!("docker.io/library/a@{digest}");
        let want = [id.to_string(), by(&manifest), "docker.io/library/a:latest".into()];
        assert_eq!(called("a", None).unwrap(), want);
        let want = [id.to_string(), by(&manifest), by(&index), "docker.io/library/a:1".into()];
        assert_eq!(called("a:1", Some(3)).unwrap(), want);
        // With a digest, the tag is only informational.
        assert_eq!(called(&format!("a:1@{index}"), Some(3)).unwrap(), want[..3]);
        assert_eq!(called(&format!("a@{manifest}"), None).unwrap(), want[..2]);
        assert_eq!(called(&format!("a@{}", digest(9)), Some(3)), None);
    }

    #[test]
    fn an_index_is_used_only_if_it_is_unambiguous() {
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
