//! What lies where in a tar, by its headers alone.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Seek as _};
use std::sync::Arc;

use super::error::{Context, Error};
use super::extent::Extent;
use larder_layer::limits::Limits;
use larder_layer::path;
use larder_layer::tar::{Kind, Reader};

/// Members of a tar. An archive has a few for each layer.
const MAX_MEMBERS: u64 = 100_000;

/// Longest path, bytes; the longest honest one is a sha512 digest in `blobs/sha512/`.
const MAX_PATH: usize = 512;

/// Links on the way to a member; docker has made one for a layer that it had written before.
const MAX_LINKS: usize = 4;

/// Paths are clean: no component is empty, `.` or `..`.
#[derive(Debug)]
pub(super) struct Members(HashMap<Vec<u8>, Member>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Member {
    File(Extent),
    /// A link to another member.
    Link(Vec<u8>),
    Directory,
}

impl Members {
    /// The file at `path`; symbolic and hard links of the tar are followed to other members.
    pub(super) fn get(&self, path: &str) -> Option<Extent> {
        let mut path = path::clean(path.as_bytes()).ok()?;
        for _ in 0..=MAX_LINKS {
            match self.0.get(&path)? {
                Member::File(extent) => return Some(extent.clone()),
                Member::Link(target) => path = target.clone(),
                Member::Directory => return None,
            }
        }
        None
    }
}

/// Reads the headers. A name that comes twice must stand for the same content both times: readers differ in which of the two
/// they take.
pub(super) fn index(file: &Arc<File>, shown: &str) -> Result<Members, Error> {
    let tar = |source| Error::Tar { path: shown.to_owned(), source };
    let malformed = |path: &[u8], reason: &str| Error::Malformed {
        file: String::from_utf8_lossy(path).into_owned(),
        reason: reason.to_owned(),
    };
    let length = file.metadata().context("examining", shown)?.len();
    let mut input = BufReader::with_capacity(4096, &**file);
    input.rewind().context("reading", shown)?;
    let limits = Limits {
        max_entries: MAX_MEMBERS,
        max_logical_bytes: u64::MAX,
        max_pax_bytes: 64 << 10,
        max_path: MAX_PATH,
        ..Limits::default()
    };
    let mut reader = Reader::new(input, (), limits);
    let mut members = HashMap::new();
    while let Some(member) = reader.next().map_err(tar)? {
        let at = path::clean(&member.path).map_err(|fault| malformed(&member.path, &fault.to_string()))?;
        let found = match member.kind {
            Kind::File => {
                let start = reader.position().map_err(tar)?;
                if start.checked_add(member.size).is_none_or(|end| end > length) {
                    return Err(malformed(&member.path, "the archive ends inside it"));
                }
                reader.jump().map_err(tar)?;
                Member::File(Extent::whole(start, member.size))
            }
            Kind::Sparse { map } => {
                let start = reader.position().map_err(tar)?;
                let extent = Extent::sparse(start, member.size, &map, length);
                let extent = extent.map_err(|reason| malformed(&member.path, reason))?;
                reader.jump().map_err(tar)?;
                Member::File(extent)
            }
            Kind::Directory => Member::Directory,
            Kind::Symlink { target } => {
                // What leads out of the archive leads nowhere.
                let target = path::join(path::split(&at).0, &target);
                path::clean(&target).map_or(Member::Directory, Member::Link)
            }
            Kind::HardLink { target } => path::clean(&target).map_or(Member::Directory, Member::Link),
            Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo => {
                return Err(malformed(&member.path, "an archive of images has nothing of this kind"));
            }
        };
        let is_same = match (members.get(&at), &found) {
            (None, _) => true,
            (Some(Member::File(before)), Member::File(now)) => {
                before.is_equal(now, file).context("reading", shown)?
            }
            (Some(before), now) => before == now,
        };
        if !is_same {
            return Err(malformed(&member.path, "it is there twice, and not the same both times"));
        }
        members.insert(at, found);
    }
    Ok(Members(members))
}
