//! Index of a tar, from its headers alone.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Seek as _};
use std::sync::Arc;

use super::error::Error;
use super::extent::Extent;
use larder_layer::limits::Limits;
use larder_layer::path;
use larder_layer::tar::{Kind, Reader};
use larder_model::io_error::Context as _;

/// Maximum number of members. An archive has a few per layer.
const MAX_MEMBERS: u64 = 100_000;

/// Maximum length of a path, bytes. The longest legitimate path is a sha512 digest in `blobs/sha512/`.
const MAX_PATH: usize = 512;

/// Maximum number of links on the way to a member. Docker writes one for a layer that it has already written.
const MAX_LINKS: usize = 4;

/// The members of a tar by path. Paths are clean: no component is empty, `.` or `..`.
#[derive(Debug)]
pub(super) struct Members(HashMap<Vec<u8>, Member>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Member {
    File(Extent),
    /// A link to another member of the tar.
    Link(Vec<u8>),
    Directory,
}

impl Members {
    /// Returns the file at `path`. Symbolic and hard links are followed to other members of the tar.
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

/// Reads the headers. If a name occurs twice, both members must have the same content, because readers differ
/// in which one they use.
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
        let at = path::clean(&member.path).map_err(|e| malformed(&member.path, &e.to_string()))?;
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
                // A link that leads out of the archive has no target.
                let target = path::join(path::split(&at).0, &target);
                path::clean(&target).map_or(Member::Directory, Member::Link)
            }
            Kind::HardLink { target } => path::clean(&target).map_or(Member::Directory, Member::Link),
            Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo => {
                return Err(malformed(
                    &member.path,
                    "device files and pipes are not allowed in an image archive",
                ));
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
            return Err(malformed(&member.path, "it occurs twice with different contents"));
        }
        members.insert(at, found);
    }
    Ok(Members(members))
}
