//! Applies the members of a tar independently of the format of the layer. Cleans names, interprets whiteouts,
//! filters attributes, and rejects hostile members. A `Sink` does the rest.

use std::io::BufRead;

use super::error::{Error, Fault};
use super::metadata::{self, Metadata};
use super::path::{self, Meaning};
use super::tar::{Kind, Member, Reader, Record, Region};
use larder_sys::{FileType, Timestamp};

/// The reason why applying failed: the tar is broken, or its content cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The tar is broken, or the stream below it failed.
    #[error(transparent)]
    Tar(super::tar::Error),
    /// A member cannot be written.
    #[error(transparent)]
    Sink(#[from] Error),
}

/// A layer that is being written. Members can come in any order: a later one replaces an earlier one of the
/// same name, regardless of type.
pub(super) trait Sink {
    /// A name in a directory of the layer.
    type Destination;

    /// Sets the metadata of the root directory.
    fn root(&mut self, metadata: Metadata) -> Result<(), Error>;

    /// Returns the destination of a member after creating its parents.
    fn destination(&mut self, clean: &[u8]) -> Result<Self::Destination, Error>;

    /// Writes a regular file of `size` bytes, which are the next bytes of `reader`.
    fn file<B: BufRead, R: Record>(
        &mut self,
        reader: &mut Reader<B, R>,
        destination: &Self::Destination,
        size: u64,
        metadata: &Metadata,
    ) -> Result<(), Failure>;

    /// Writes a regular file of `size` bytes whose data lies in `map`. The record of the reader already
    /// contains its bytes, because the tar-split format can only refer to whole files.
    fn sparse<B: BufRead, R: Record>(
        &mut self,
        reader: &mut Reader<B, R>,
        destination: &Self::Destination,
        size: u64,
        map: &[Region],
        metadata: &Metadata,
    ) -> Result<(), Failure>;

    /// Creates a directory.
    fn directory(&mut self, destination: &Self::Destination, metadata: Metadata) -> Result<(), Error>;

    /// Creates a symbolic link.
    fn symlink(
        &mut self,
        destination: &Self::Destination,
        target: &[u8],
        metadata: &Metadata,
    ) -> Result<(), Error>;

    /// Creates a device node or named pipe.
    fn node(
        &mut self,
        destination: &Self::Destination,
        file_type: FileType,
        device: (u32, u32),
        metadata: &Metadata,
    ) -> Result<(), Error>;

    /// Creates another name for the file at the clean path `target`, in this layer or a lower one.
    fn hard_link(
        &mut self,
        destination: &Self::Destination,
        target: &[u8],
        metadata: Metadata,
    ) -> Result<(), Error>;

    /// Hides the entries that lower layers have in the parent directory of `clean`.
    fn opaque(&mut self, clean: &[u8]) -> Result<(), Error>;

    /// Hides the sibling `hidden` of `clean` in lower layers.
    fn whiteout(&mut self, clean: &[u8], hidden: &[u8]) -> Result<(), Error>;

    /// Called after each member.
    fn done(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

/// Writes all members of `reader` and returns their number.
pub(super) fn members<B: BufRead, R: Record>(
    reader: &mut Reader<B, R>,
    sink: &mut impl Sink,
) -> Result<u64, Failure> {
    let mut count = 0;
    while let Some(next) = reader.next().map_err(Failure::Tar)? {
        count += 1;
        member(reader, sink, next)?;
        sink.done()?;
    }
    Ok(count)
}

fn member<B: BufRead, R: Record>(
    reader: &mut Reader<B, R>,
    sink: &mut impl Sink,
    member: Member,
) -> Result<(), Failure> {
    let hostile = |fault| Error::hostile(&member.path, fault);
    let clean = path::clean_member(&member.path).map_err(hostile)?;
    match path::meaning(&clean).map_err(hostile)? {
        Meaning::Aufs => return Ok(()),
        Meaning::Opaque => {
            whiteout_kind(&clean, &member.kind)?;
            return Ok(sink.opaque(&clean)?);
        }
        Meaning::Whiteout(hidden) => {
            whiteout_kind(&clean, &member.kind)?;
            return Ok(sink.whiteout(&clean, hidden)?);
        }
        Meaning::Plain => {}
    }
    let mut metadata = Metadata {
        mode: member.mode & 0o7777,
        uid: member.uid,
        gid: member.gid,
        mtime: Timestamp { sec: member.mtime.sec, nsec: member.mtime.nsec },
        xattrs: member.xattrs,
    };
    metadata::filter_xattrs(&clean, &mut metadata.xattrs)?;
    if clean.is_empty() {
        return match member.kind {
            Kind::Directory => Ok(sink.root(metadata)?),
            _ => Err(hostile(Fault::RootKind).into()),
        };
    }
    let destination = &sink.destination(&clean)?;
    match member.kind {
        Kind::File => return sink.file(reader, destination, member.size, &metadata),
        Kind::Sparse { map } => return sink.sparse(reader, destination, member.size, &map, &metadata),
        Kind::Directory => sink.directory(destination, metadata)?,
        Kind::Symlink { target } if target.is_empty() || target.len() > 4095 || target.contains(&0) => {
            return Err(Error::hostile(&clean, Fault::LinkText).into());
        }
        Kind::Symlink { target } => sink.symlink(destination, &target, &metadata)?,
        Kind::HardLink { target } => {
            let target = path::clean(&target).map_err(hostile)?;
            if target.is_empty() {
                return Err(hostile(Fault::LinkToDirectory("/".into())).into());
            }
            sink.hard_link(destination, &target, metadata)?;
        }
        Kind::CharDevice { major: 0, minor: 0 } => return Err(hostile(Fault::WhiteoutDevice).into()),
        Kind::CharDevice { major, minor } => {
            sink.node(destination, FileType::CharDevice, (major, minor), &metadata)?;
        }
        Kind::BlockDevice { major, minor } => {
            sink.node(destination, FileType::BlockDevice, (major, minor), &metadata)?;
        }
        Kind::Fifo => sink.node(destination, FileType::Fifo, (0, 0), &metadata)?,
    }
    Ok(())
}

/// Checks the type of a whiteout. Whiteouts are regular files, but AUFS wrote them as hard links to one
/// another.
fn whiteout_kind(clean: &[u8], kind: &Kind) -> Result<(), Error> {
    match kind {
        Kind::File | Kind::HardLink { .. } => Ok(()),
        _ => Err(Error::hostile(clean, Fault::WhiteoutKind)),
    }
}
