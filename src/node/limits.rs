//! The maximum length of an image store's mount point: overlayfs takes all directories in one page of
//! options.
//!
//! podman, buildah and CRI-O write one `/AT/overlay/l/<short name>` for each tree below a container, even
//! where shorter names would be possible. containers/storage before 1.44 (`drivers/overlay/overlay.go`,
//! `get`) resolves relative names only in the primary store. Newer versions pass descriptors if one page is
//! too small. The snapshotter has its own short names, so the mount point does not matter for it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::volume::layout;
use larder_model::chain::{ChainId, SHORT_NAME};
use larder_model::class::Class;
use larder_model::seal::Content;

/// Maximum size of the mount options, bytes: one page (mount(2)), including the NUL.
pub const PAGE: usize = 4096;

/// Maximum number of trees below a container for containers/storage before 1.44 (`maxDepth`). Newer versions
/// and the kernel allow 500.
pub const DEPTH: usize = 128;

/// Size of the options other than the list of layers, bytes. They are the container's own directories in the
/// default location, twice, the options from `storage.conf` and podman (`nodev,metacopy=on,volatile`), and an
/// SELinux label.
const OTHER_OPTIONS: usize = "lowerdir=".len()
    + ",upperdir=/diff".len()
    + ",workdir=/work".len()
    + 2 * ("/var/lib/containers/storage/overlay/".len() + 64)
    + ",nodev,metacopy=on,volatile".len()
    + ",context=\"system_u:object_r:container_file_t:s0:c1022,c1023\"".len();

/// Size of the text around a short name in the list, bytes.
const NAME_OVERHEAD: usize = "/overlay/l/:".len();

/// Returns the number of trees of the deepest image.
pub fn deepest(content: &Content) -> usize {
    let trees: HashMap<&ChainId, usize> = content
        .layers
        .iter()
        .map(|layer| (&layer.chain_id, layout::parts(content.layer_format, layer).trees.len()))
        .collect();
    let of = |chain: &Vec<ChainId>| chain.iter().filter_map(|id| trees.get(id)).sum();
    content.images.iter().map(|image| of(&image.chain)).max().unwrap_or(0)
}

/// A path cannot be the mount point of an image store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MountPointError {
    /// The path contains bytes that podman, CRI-O or overlayfs use as separators.
    #[error(
        "{0:?}: the mount point of an image store must be UTF-8 without colons, commas, quotes, backslashes and control characters"
    )]
    Name(PathBuf),
    /// The path is too long.
    #[error(
        "{} is too long: an image of {trees} layers could not start, because overlayfs limits the options to one page; mount \
         at a shorter path, at most {most} bytes", at.display()
    )]
    Long {
        /// Path of the mount point.
        at: PathBuf,
        /// Number of trees of the deepest image.
        trees: usize,
        /// Maximum length of the path, bytes.
        most: usize,
    },
    /// No path is short enough for the image.
    #[error(
        "an image of {trees} layers cannot start from any image store: overlayfs limits the options to one page"
    )]
    Deep {
        /// Number of trees of the deepest image.
        trees: usize,
    },
}

impl MountPointError {
    /// Returns the error class, which determines the exit code.
    pub fn class(&self) -> Class {
        Class::Invalid
    }
}

/// Checks that every image of a volume can start from a store at `at`.
///
/// # Errors
///
/// [`MountPointError`] with the reason.
pub fn check(content: &Content, at: &Path) -> Result<(), MountPointError> {
    let refused = |c: char| matches!(c, ':' | ',' | '"' | '\\') || c.is_control();
    if at.to_str().is_none_or(|text| text.contains(refused)) {
        return Err(MountPointError::Name(at.to_owned()));
    }
    let trees = deepest(content);
    match longest_mount_point(content) {
        None => Err(MountPointError::Deep { trees }),
        Some(most) if at.as_os_str().len() > most => {
            Err(MountPointError::Long { at: at.to_owned(), trees, most })
        }
        Some(_) => Ok(()),
    }
}

/// Returns the size of the mount options of a container of the deepest image, with the store at `at`, bytes.
/// The container can start if this is less than [`PAGE`] and [`deepest`] is at most [`DEPTH`].
pub fn options_len(content: &Content, at: &Path) -> usize {
    OTHER_OPTIONS + deepest(content) * (at.as_os_str().len() + NAME_OVERHEAD + SHORT_NAME)
}

/// Returns the maximum length of the store's path for which every image can start, bytes. `None` if no path
/// is short enough.
pub fn longest_mount_point(content: &Content) -> Option<usize> {
    let trees = deepest(content);
    if trees == 0 {
        return Some(PAGE - 1);
    }
    let each = (PAGE - 1 - OTHER_OPTIONS) / trees;
    // The shortest path is `/x`.
    each.checked_sub(NAME_OVERHEAD + SHORT_NAME).filter(|len| *len >= 2 && trees <= DEPTH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::digest::Digest;
    use larder_model::job::LayerFormat;
    use larder_model::seal::{Compression, Image, Layer, LayerImage, Settled, Totals};
    use larder_model::size::ByteSize;

    fn content(depth: usize, format: LayerFormat, fixups: usize) -> Content {
        let digest = Digest::sha256(b"");
        let diff_ids: Vec<Digest> = (0..depth).map(|n| Digest::sha256(n.to_string().as_bytes())).collect();
        let chain = ChainId::chain(&diff_ids);
        let layers = chain.iter().enumerate().map(|(n, chain_id)| Layer {
            chain_id: chain_id.clone(),
            parent: n.checked_sub(1).map(|below| chain[below].clone()),
            diff_id: diff_ids[n].clone(),
            blob: digest.clone(),
            media_type: String::new(),
            compression: Compression::None,
            compressed_size: 0,
            size: 0,
            entries: 0,
            tar_split_size: None,
            image: (format == LayerFormat::Erofs).then(|| LayerImage {
                size: 0,
                fixup_size: (n < fixups).then_some(4096),
                verity: None,
            }),
            settled: Settled::default(),
            lost: Vec::new(),
        });
        let layers = layers.collect();
        let image = Image {
            reference: "a:1".into(),
            name: "docker.io/library/a:1".into(),
            index: None,
            manifest: digest.clone(),
            config: digest.clone(),
            platform: "linux/amd64".parse().unwrap(),
            chain,
        };
        Content {
            version: 1,
            larder: String::new(),
            job: digest,
            layer_format: format,
            tar_split: false,
            size: ByteSize(0),
            images: vec![image],
            layers,
            totals: Totals::default(),
        }
    }

    #[test]
    fn the_longest_mount_point_is_exact() {
        for (depth, format, fixups, trees) in [
            (1, LayerFormat::Overlay, 0, 1),
            (60, LayerFormat::Erofs, 30, 90),
            (120, LayerFormat::Overlay, 0, 120),
            (120, LayerFormat::Erofs, 8, 128),
        ] {
            let content = content(depth, format, fixups);
            assert_eq!(deepest(&content), trees);
            let most = longest_mount_point(&content).unwrap();
            let at = |len: usize| format!("/{}", "x".repeat(len - 1));
            assert!(options_len(&content, Path::new(&at(most))) < PAGE);
            assert!(options_len(&content, Path::new(&at(most + 1))) >= PAGE);
            assert_eq!(check(&content, Path::new(&at(most))), Ok(()));
            let long = check(&content, Path::new(&at(most + 1))).unwrap_err();
            assert!(long.to_string().contains(&format!("at most {most} bytes")), "{long}");
        }
        // 120 layers start from a store at /icv.
        assert!(longest_mount_point(&content(120, LayerFormat::Overlay, 0)).unwrap() >= 4);
        let deep = content(120, LayerFormat::Erofs, 9);
        assert_eq!(longest_mount_point(&deep), None);
        assert_eq!(check(&deep, Path::new("/v")), Err(MountPointError::Deep { trees: 129 }));
        for name in ["/a:b", "/a,b", "/a\nb", "/a\\b"] {
            let refused = check(&content(1, LayerFormat::Overlay, 0), Path::new(name));
            assert_eq!(refused, Err(MountPointError::Name(name.into())));
        }
    }
}
