//! How long the mount point of an image store may be: overlayfs takes all directories in one page of options.
//!
//! podman, buildah and CRI-O write one `/AT/overlay/l/<short name>` for each tree below a container, also where they can
//! write shorter ones (containers/storage before 1.44, `drivers/overlay/overlay.go`, `get`: relative names are looked up in the
//! primary store alone; newer ones name descriptors where a page does not do). The snapshotter has names of its own, so it does
//! not matter to it where a volume is mounted.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::volume::layout;
use larder_model::chain::{ChainId, SHORT_NAME};
use larder_model::class::Class;
use larder_model::seal::Content;

/// Most bytes of mount options: a page and no more (mount(2)), of which the NUL is one.
pub const PAGE: usize = 4096;

/// Most trees below a container for containers/storage before 1.44 (`maxDepth`); newer ones and the kernel take 500.
pub const DEPTH: usize = 128;

/// What is beside the list: the container's own directories in the default place, twice, what `storage.conf` and podman add
/// (`nodev,metacopy=on,volatile`), and a label of SELinux.
const BESIDE: usize = "lowerdir=".len()
    + ",upperdir=/diff".len()
    + ",workdir=/work".len()
    + 2 * ("/var/lib/containers/storage/overlay/".len() + 64)
    + ",nodev,metacopy=on,volatile".len()
    + ",context=\"system_u:object_r:container_file_t:s0:c1022,c1023\"".len();

/// What stands around a short name in the list.
const AROUND: usize = "/overlay/l/:".len();

/// Trees of the image that has most.
pub fn deepest(content: &Content) -> usize {
    let trees: HashMap<&ChainId, usize> = content
        .layers
        .iter()
        .map(|layer| (&layer.chain_id, layout::parts(content.layer_format, layer).trees.len()))
        .collect();
    let of = |chain: &Vec<ChainId>| chain.iter().filter_map(|id| trees.get(id)).sum();
    content.images.iter().map(|image| of(&image.chain)).max().unwrap_or(0)
}

/// A store cannot be used at a path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// podman, CRI-O and overlayfs separate paths by these bytes.
    #[error(
        "{0:?}: a mount point of an image store has no colon, comma, quote, backslash or control character, and is UTF-8"
    )]
    Name(PathBuf),
    /// It is too long.
    #[error(
        "{} is too long: an image of {trees} layers would not start, since overlayfs takes all of them in one page of options; mount \
         at a shorter path, at most {most} bytes", at.display()
    )]
    Long {
        /// The path.
        at: PathBuf,
        /// Trees of the deepest image.
        trees: usize,
        /// Most bytes of the path.
        most: usize,
    },
    /// No path is short enough.
    #[error(
        "an image of {trees} layers starts from no image store: overlayfs takes all of them in one page of options"
    )]
    Deep {
        /// Trees of the deepest image.
        trees: usize,
    },
}

impl Unfit {
    /// The class, which decides about the exit code.
    pub fn class(&self) -> Class {
        Class::Invalid
    }
}

/// Whether every image of a volume starts from a store at `at`.
pub fn check(content: &Content, at: &Path) -> Result<(), Unfit> {
    let refused = |c: char| matches!(c, ':' | ',' | '"' | '\\') || c.is_control();
    if at.to_str().is_none_or(|text| text.contains(refused)) {
        return Err(Unfit::Name(at.to_owned()));
    }
    let trees = deepest(content);
    match longest_mount_point(content) {
        None => Err(Unfit::Deep { trees }),
        Some(most) if at.as_os_str().len() > most => Err(Unfit::Long { at: at.to_owned(), trees, most }),
        Some(_) => Ok(()),
    }
}

/// Bytes of the mount options of a container of the deepest image, with the store at `at`. It starts where they are fewer
/// than [`PAGE`] and [`deepest`] is at most [`DEPTH`].
pub fn options_len(content: &Content, at: &Path) -> usize {
    BESIDE + deepest(content) * (at.as_os_str().len() + AROUND + SHORT_NAME)
}

/// Most bytes that the path of the store may have so that every image starts; `None` where no path is short enough.
pub fn longest_mount_point(content: &Content) -> Option<usize> {
    let trees = deepest(content);
    if trees == 0 {
        return Some(PAGE - 1);
    }
    let each = (PAGE - 1 - BESIDE) / trees;
    // `/x` is the shortest.
    each.checked_sub(AROUND + SHORT_NAME).filter(|len| *len >= 2 && trees <= DEPTH)
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
    fn the_longest_mount_point_is_the_longest() {
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
        assert_eq!(check(&deep, Path::new("/v")), Err(Unfit::Deep { trees: 129 }));
        for name in ["/a:b", "/a,b", "/a\nb", "/a\\b"] {
            let refused = check(&content(1, LayerFormat::Overlay, 0), Path::new(name));
            assert_eq!(refused, Err(Unfit::Name(name.into())));
        }
    }
}
