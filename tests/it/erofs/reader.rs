//! The view that Larder's own reader has of an image.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};

use larder_layer::erofs::read::ImageNode;
use larder_sys::FileType;

use super::found::{Found, Kind};

/// Reads the tree, at most `steps` inodes of it.
pub(crate) fn scan(image: File, steps: usize) -> io::Result<BTreeMap<Vec<u8>, Found>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![(Vec::new(), ImageNode::root(image)?)];
    while let Some((path, node)) = pending.pop() {
        let stat = node.stat();
        let kind = match stat.file_type {
            FileType::Directory => {
                for name in node.names()? {
                    let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                    let below = node.lookup(&name)?.expect("cannot look up a listed name");
                    pending.push(([&path, slash, &name].concat(), below));
                }
                assert!(node.lookup(b"\x01none").unwrap_or_default().is_none());
                Kind::Directory
            }
            FileType::Regular => {
                let mut content = Vec::new();
                node.content()?.take(1 << 28).read_to_end(&mut content)?;
                let data: u64 = node.regions()?.iter().map(|region| region.length).sum();
                assert!(data <= stat.size);
                Kind::file(&content)
            }
            FileType::Symlink => Kind::Symlink(node.target()?),
            other => Kind::Device(other, stat.device),
        };
        let (path_of, identity) = (path.clone(), stat.identity);
        let entry = Found {
            kind,
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
            mtime: stat.mtime,
            xattrs: node.xattrs()?.into_iter().collect(),
            links: stat.links,
            first_name: Vec::new(),
        };
        found.insert(path_of, (identity, entry));
        if found.len() > steps {
            break;
        }
    }
    let mut first: BTreeMap<(u64, u64), Vec<u8>> = BTreeMap::new();
    let named = found.into_iter().map(|(path, (identity, mut entry))| {
        entry.first_name = first.entry(identity).or_insert_with(|| path.clone()).clone();
        (path, entry)
    });
    Ok(named.collect())
}
