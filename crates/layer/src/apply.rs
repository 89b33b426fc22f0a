//! What applying a tar means whatever form the layer gets: names are cleaned, whiteouts understood, attributes screened,
//! and what no honest layer holds is refused. A `Sink` does the rest.

use std::io::BufRead;

use super::error::{Error, Fault};
use super::metadata::{self, Metadata};
use super::path::{self, Meaning};
use super::tar::{Kind, Member, Reader, Record, Region};
use larder_sys::{FileType, Timestamp};

/// Either the tar is broken or its content cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The tar is broken, or the stream below it failed.
    #[error(transparent)]
    Tar(super::tar::Error),
    /// A member cannot be written.
    #[error(transparent)]
    Sink(#[from] Error),
}

/// A layer that is being written. The order of members is free: a later one replaces an earlier one of the same name
/// whatever its type.
pub(super) trait Sink {
    /// A name in a directory of the layer.
    type Spot;

    /// The root directory is described.
    fn root(&mut self, metadata: Metadata) -> Result<(), Error>;

    /// Where a member goes; its parents are made.
    fn spot(&mut self, clean: &[u8]) -> Result<Self::Spot, Error>;

    /// A regular file of `size` bytes, which `reader` has next.
    fn file<B: BufRead, R: Record>(
        &mut self,
        reader: &mut Reader<B, R>,
        spot: &Self::Spot,
        size: u64,
        metadata: &Metadata,
    ) -> Result<(), Failure>;

    /// A regular file of `size` bytes whose data lies in `map`. Its bytes are in the tar-split file already, which can
    /// only name whole files.
    fn sparse<B: BufRead, R: Record>(
        &mut self,
        reader: &mut Reader<B, R>,
        spot: &Self::Spot,
        size: u64,
        map: &[Region],
        metadata: &Metadata,
    ) -> Result<(), Failure>;

    /// A directory.
    fn directory(&mut self, spot: &Self::Spot, metadata: Metadata) -> Result<(), Error>;

    /// A symbolic link.
    fn symlink(&mut self, spot: &Self::Spot, target: &[u8], metadata: &Metadata) -> Result<(), Error>;

    /// A device node or named pipe.
    fn node(
        &mut self,
        spot: &Self::Spot,
        file_type: FileType,
        device: (u32, u32),
        metadata: &Metadata,
    ) -> Result<(), Error>;

    /// Another name of what lies at the clean path `target`, in this layer or one below.
    fn hard_link(&mut self, spot: &Self::Spot, target: &[u8], metadata: Metadata) -> Result<(), Error>;

    /// The directory that `clean` is in hides what the layers below have in it.
    fn opaque(&mut self, clean: &[u8]) -> Result<(), Error>;

    /// The name `hidden` beside `clean` is hidden of the layers below.
    fn whiteout(&mut self, clean: &[u8], hidden: &[u8]) -> Result<(), Error>;

    /// A member is done with.
    fn done(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

/// Writes every member that `reader` has; answers how many there were.
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
    metadata::screen(&clean, &mut metadata.xattrs)?;
    if clean.is_empty() {
        return match member.kind {
            Kind::Directory => Ok(sink.root(metadata)?),
            _ => Err(hostile(Fault::RootKind).into()),
        };
    }
    let spot = &sink.spot(&clean)?;
    match member.kind {
        Kind::File => return sink.file(reader, spot, member.size, &metadata),
        Kind::Sparse { map } => return sink.sparse(reader, spot, member.size, &map, &metadata),
        Kind::Directory => sink.directory(spot, metadata)?,
        Kind::Symlink { target } if target.is_empty() || target.len() > 4095 || target.contains(&0) => {
            return Err(Error::hostile(&clean, Fault::LinkText).into());
        }
        Kind::Symlink { target } => sink.symlink(spot, &target, &metadata)?,
        Kind::HardLink { target } => {
            let target = path::clean(&target).map_err(hostile)?;
            if target.is_empty() {
                return Err(hostile(Fault::LinkToDirectory("/".into())).into());
            }
            sink.hard_link(spot, &target, metadata)?;
        }
        Kind::CharDevice { major: 0, minor: 0 } => return Err(hostile(Fault::WhiteoutDevice).into()),
        Kind::CharDevice { major, minor } => {
            sink.node(spot, FileType::CharDevice, (major, minor), &metadata)?;
        }
        Kind::BlockDevice { major, minor } => {
            sink.node(spot, FileType::BlockDevice, (major, minor), &metadata)?;
        }
        Kind::Fifo => sink.node(spot, FileType::Fifo, (0, 0), &metadata)?,
    }
    Ok(())
}

/// Whiteouts are regular files; AUFS wrote them as hard links to one another.
fn whiteout_kind(clean: &[u8], kind: &Kind) -> Result<(), Error> {
    match kind {
        Kind::File | Kind::HardLink { .. } => Ok(()),
        _ => Err(Error::hostile(clean, Fault::WhiteoutKind)),
    }
}
