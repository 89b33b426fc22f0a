//! Media types of manifests, configs and layers (OCI image spec, media-types.md; Docker manifest schema 2).

use std::str::FromStr;

use super::error::{ManifestError, truncate};
use crate::seal::Compression;

const IMAGE_CONFIG_MEDIA_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const IMAGE_DOCKER_CONFIG_MEDIA_TYPE: &str = "application/vnd.docker.container.image.v1+json";
pub(super) const IMAGE_MANIFEST_LIST_MEDIA_TYPE: &str =
    "application/vnd.docker.distribution.manifest.list.v2+json";
pub(super) const IMAGE_MANIFEST_MEDIA_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(super) const OCI_IMAGE_INDEX_MEDIA_TYPE: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_IMAGE_MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// The types that a request for a manifest accepts: those that [`Document::parse`](super::Document::parse)
/// supports.
pub const ACCEPT: [&str; 4] = [
    OCI_IMAGE_INDEX_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE,
    IMAGE_MANIFEST_LIST_MEDIA_TYPE,
    IMAGE_MANIFEST_MEDIA_TYPE,
];

/// The kind of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Image,
    Index,
}

impl Kind {
    /// Returns the kind of document of a media type; `None` if it is neither.
    pub(super) fn of(media_type: &str) -> Option<Kind> {
        match media_type {
            OCI_IMAGE_MEDIA_TYPE | IMAGE_MANIFEST_MEDIA_TYPE => Some(Kind::Image),
            OCI_IMAGE_INDEX_MEDIA_TYPE | IMAGE_MANIFEST_LIST_MEDIA_TYPE => Some(Kind::Index),
            _ => None,
        }
    }

    pub(super) fn oci_media_type(self) -> &'static str {
        match self {
            Kind::Image => OCI_IMAGE_MEDIA_TYPE,
            Kind::Index => OCI_IMAGE_INDEX_MEDIA_TYPE,
        }
    }
}

/// Reports whether a config of this type makes its manifest an image.
pub(super) fn is_image_config(media_type: &str) -> bool {
    matches!(media_type, IMAGE_CONFIG_MEDIA_TYPE | IMAGE_DOCKER_CONFIG_MEDIA_TYPE)
}

/// Reports whether a media type is Docker schema 1, signed or not.
pub(super) fn is_schema_1(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.docker.distribution.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v1+prettyjws"
    )
}

/// Returns a Content-Type without its parameters, in lower case (RFC 9110, 8.3.1).
pub(super) fn without_parameters(content_type: &str) -> String {
    let essence = content_type.split(';').next().unwrap_or_default();
    essence.trim().to_ascii_lowercase()
}

/// The properties that the media type of a layer states. The decoder uses only magic bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerMediaType {
    /// Compression stated by the media type.
    pub compression: Compression,
    /// `true` if the blob can be outside the registry (nondistributable, foreign).
    pub foreign: bool,
}

impl FromStr for LayerMediaType {
    type Err = ManifestError;

    fn from_str(media_type: &str) -> Result<Self, Self::Err> {
        let known = |media_type: &str| {
            const TARS: [(&str, bool); 4] = [
                ("application/vnd.oci.image.layer.v1.tar", false),
                ("application/vnd.oci.image.layer.nondistributable.v1.tar", true),
                ("application/vnd.docker.image.rootfs.diff.tar", false),
                ("application/vnd.docker.image.rootfs.foreign.diff.tar", true),
            ];
            TARS.iter().find_map(|(tar, foreign)| {
                let compression = match media_type.strip_prefix(tar)? {
                    "" => Compression::None,
                    "+gzip" | ".gzip" => Compression::Gzip,
                    "+zstd" | ".zstd" => Compression::Zstd,
                    _ => return None,
                };
                Some(LayerMediaType { compression, foreign: *foreign })
            })
        };
        let plain = media_type.strip_suffix("+encrypted");
        match (plain.and_then(known), known(media_type)) {
            (Some(_), _) => Err(ManifestError::EncryptedLayer { media_type: truncate(media_type) }),
            (None, Some(layer)) => Ok(layer),
            (None, None) => Err(ManifestError::UnknownLayer { media_type: truncate(media_type) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers() {
        let oci = "application/vnd.oci.image.layer.v1.tar";
        let docker = "application/vnd.docker.image.rootfs.diff.tar";
        for (media_type, compression, foreign) in [
            (oci.to_owned(), Compression::None, false),
            (format!("{oci}+gzip"), Compression::Gzip, false),
            (format!("{oci}+zstd"), Compression::Zstd, false),
            (docker.to_owned(), Compression::None, false),
            (format!("{docker}.gzip"), Compression::Gzip, false),
            (format!("{docker}.zstd"), Compression::Zstd, false),
            (
                "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip".to_owned(),
                Compression::Gzip,
                true,
            ),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".to_owned(), Compression::Gzip, true),
        ] {
            let layer: LayerMediaType = media_type.parse().unwrap();
            assert_eq!((layer.compression, layer.foreign), (compression, foreign), "{media_type}");
        }
    }

    #[test]
    fn refused_by_name() {
        let oci = "application/vnd.oci.image.layer.v1.tar";
        for bad in ["", "text/plain", &oci.to_uppercase(), &format!("{oci}+xz"), &format!("{oci}x")] {
            let error = bad.parse::<LayerMediaType>().unwrap_err();
            assert!(matches!(error, ManifestError::UnknownLayer { .. }), "{bad}");
        }
        for bad in ["", "+gzip", "+zstd"].map(|suffix| format!("{oci}{suffix}+encrypted")) {
            let error = bad.parse::<LayerMediaType>().unwrap_err();
            assert!(matches!(error, ManifestError::EncryptedLayer { .. }), "{bad}");
            assert!(error.to_string().contains(&bad));
        }
    }
}
