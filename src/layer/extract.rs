//! One layer from compressed chunks to a tree: decode, read, apply, and the tar-split file beside it. Blocking.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, BufReader, BufWriter};

use super::decode::{ChunkSource, Decoded, Decoder};
use super::error::Error as SinkError;
use super::limits::Limits;
use super::overlay::Applied;
use super::overlay::apply::{self, Failure, Target};
use super::overlay::replaced::Replaced;
use super::reserved::{BLOCK, Reserved};
use super::space::Space;
use super::tar::Reader;
use super::tar_split::{self, TarSplit, TarSplitReader};
use crate::model::class::Class;
use crate::model::digest::Digest;
use crate::sys::Dir;

/// What a layer must turn out to be.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Digest of the blob.
    pub blob: Digest,
    /// Size of the blob, bytes.
    pub size: u64,
    /// Digest of the tar.
    pub diff_id: Digest,
}

/// Where the tar-split file goes.
#[derive(Debug)]
pub struct TarSplitTarget<'a> {
    /// The directory that holds it.
    pub dir: &'a Dir,
    /// Its name there.
    pub name: &'a [u8],
}

/// A layer on disk, verified, not settled.
#[derive(Clone, Debug)]
pub struct Extracted {
    /// What is to be settled.
    pub applied: Applied,
    /// Digests and sizes.
    pub decoded: Decoded,
    /// Size of the tar-split file, bytes, where one is kept.
    pub tar_split_size: Option<u64>,
}

/// A layer cannot be extracted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The blob or the tar in it is broken, or the stream failed.
    #[error(transparent)]
    Tar(super::tar::Error),
    /// The compressed stream is broken.
    #[error(transparent)]
    Decode(super::decode::Error),
    /// A member cannot be written.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The content is not what its digest says.
    #[error(
        "the {what} has digest {found}, {want} was promised: the content was changed, or the {promise} is wrong"
    )]
    Digest {
        /// `blob` or `tar`.
        what: &'static str,
        /// Who promised.
        promise: &'static str,
        /// Digest promised.
        want: Digest,
        /// Digest found.
        found: Digest,
    },
    /// The blob is not as long as promised.
    #[error("the blob has {found} bytes, {want} were promised by the manifest")]
    Size {
        /// Bytes promised.
        want: u64,
        /// Bytes found.
        found: u64,
    },
    /// The tar-split file cannot be written.
    #[error("writing the tar-split file: {0}")]
    TarSplit(io::Error),
}

impl Error {
    /// The same error, but where the file system had no room left, as what `space` says is lacking.
    #[must_use]
    pub fn explained(self, space: &dyn Space) -> Self {
        match self {
            Error::Sink(e) => Error::Sink(e.explained(space)),
            Error::TarSplit(e) => match super::error::out_of_room(&e).then(|| space.exhausted()).flatten() {
                Some(full) => Error::Sink(SinkError::Full { path: "tar-split".into(), full }),
                None => Error::TarSplit(e),
            },
            other => other,
        }
    }

    /// The class, which decides about retries and the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::Tar(e) => e.class(),
            Error::Decode(e) => e.class(),
            Error::Sink(e) => e.class(),
            Error::Digest { .. } | Error::Size { .. } => Class::Corrupt,
            Error::TarSplit(e) => super::error::io_class(e),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Tar(e) => Error::Tar(e),
            Failure::Sink(e) => Error::Sink(e),
        }
    }
}

/// Extracts a layer and checks it against what was promised.
pub fn extract<S: ChunkSource>(
    decoder: Decoder<S>,
    target: Target<'_>,
    split: Option<TarSplitTarget<'_>>,
    limits: &Limits,
    expected: &Expected,
) -> Result<Extracted, Error> {
    let (space, replaced_dir) = (target.space, target.replaced);
    let (applied, decoder, tar_split_size) = match split {
        None => {
            let mut reader = Reader::new(decoder, (), *limits);
            let (applied, _) = apply::apply(&mut reader, target)?;
            let (decoder, ()) = reader.finish().map_err(Error::Tar)?;
            (applied, decoder, None)
        }
        Some(split) => {
            let file = split.dir.create_file(split.name, 0o644).map_err(Error::TarSplit)?;
            let file = Reserved::new(file, space).map_err(Error::TarSplit)?;
            let writer = TarSplit::new(BufWriter::with_capacity(1 << 16, file));
            let mut reader = Reader::new(decoder, writer, *limits);
            let (applied, replaced) = apply::apply(&mut reader, target)?;
            let (decoder, writer) = reader.finish().map_err(Error::Tar)?;
            let file = writer.finish().map_err(Error::TarSplit)?;
            let mut size = file.into_inner().map_err(|e| Error::TarSplit(e.into_error()))?.written();
            if !replaced.is_empty() {
                size = take_replaced(&split, &replaced, replaced_dir, space).map_err(Error::TarSplit)?;
            }
            (applied, decoder, Some(size))
        }
    };
    let decoded = decoder.finish().map_err(Error::Decode)?;
    check(&decoded, expected)?;
    Ok(Extracted { applied, decoded, tar_split_size })
}

fn check(decoded: &Decoded, expected: &Expected) -> Result<(), Error> {
    if decoded.blob_size != expected.size {
        return Err(Error::Size { want: expected.size, found: decoded.blob_size });
    }
    if decoded.blob != expected.blob {
        let (want, found) = (expected.blob.clone(), decoded.blob.clone());
        return Err(Error::Digest { what: "blob", promise: "manifest", want, found });
    }
    if decoded.diff_id != expected.diff_id {
        let (want, found) = (expected.diff_id.clone(), decoded.diff_id.clone());
        return Err(Error::Digest { what: "tar", promise: "config", want, found });
    }
    Ok(())
}

/// Writes the tar-split file again with the content that later members replaced: the tree does not hold it any more.
fn take_replaced(
    split: &TarSplitTarget<'_>,
    replaced: &[Replaced],
    dir: &Dir,
    space: &dyn Space,
) -> io::Result<u64> {
    let temporary = [split.name, b".new"].concat();
    let old = split.dir.open_file(split.name)?;
    let old_size = old.metadata()?.len();
    let new = Reserved::new(split.dir.create_file(&temporary, 0o644)?, space)?;
    // The nth time that a path was replaced is the nth time that the file names it.
    let mut by_path: HashMap<&[u8], VecDeque<&str>> = HashMap::new();
    for replaced in replaced {
        by_path.entry(&replaced.path).or_default().push_back(&replaced.name);
    }
    let find = |path: &[u8]| -> io::Result<Option<File>> {
        let parked = by_path.get_mut(path).and_then(VecDeque::pop_front);
        parked.map(|name| dir.open_file(name.as_bytes())).transpose()
    };
    let records = TarSplitReader::new(BufReader::new(old));
    let writer = tar_split::rewrite(records, BufWriter::with_capacity(1 << 16, new), find)?;
    let size = writer.into_inner().map_err(io::IntoInnerError::into_error)?.written();
    split.dir.rename(&temporary, split.dir, split.name)?;
    space.release(old_size.div_ceil(BLOCK) * BLOCK);
    Ok(size)
}
