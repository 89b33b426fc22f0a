//! One layer from compressed chunks to a tree: decode, read, apply, and the tar-split file beside it. Blocking.

use std::collections::{HashMap, VecDeque};
use std::io::{self, BufRead, BufReader, BufWriter, Read};

use super::apply::Failure;
use super::decode::{ChunkSource, Decoded, Decoder};
use super::erofs;
use super::error::Error as SinkError;
use super::limits::Limits;
use super::overlay::Applied;
use super::overlay::{self, replaced::Replaced};
use super::reserved::{BLOCK, Reserved};
use super::space::Space;
use super::tar::{Reader, Record};
use super::tar_split::{self, TarSplit, TarSplitReader};
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_sys::Dir;

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

/// Where a layer goes, and in which form.
#[derive(Debug)]
pub enum Target<'a> {
    /// A directory tree in overlayfs form.
    Overlay(overlay::apply::Target<'a>),
    /// An image.
    Erofs(erofs::apply::Target<'a>),
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
    /// The image, where the layer is one.
    pub image: Option<erofs::Summary>,
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

    /// Whether the bytes of the blob are not those that were promised: another host may have them.
    pub fn is_of_blob(&self) -> bool {
        matches!(self, Error::Size { .. } | Error::Digest { what: "blob", .. })
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
    let space = target.space();
    let (applied, rest, decoder, tar_split_size) = match split {
        None => {
            let reader = Reader::new(decoder, (), *limits);
            let (applied, rest, decoder, ()) = target.fill(reader, expected)?;
            (applied, rest, decoder, None)
        }
        Some(split) => {
            let file = split.dir.create_file(split.name, 0o644).map_err(Error::TarSplit)?;
            let file = Reserved::new(file, space).map_err(Error::TarSplit)?;
            let writer = TarSplit::new(BufWriter::with_capacity(1 << 16, file));
            let reader = Reader::new(decoder, writer, *limits);
            let (applied, mut rest, decoder, writer) = target.fill(reader, expected)?;
            let file = writer.finish().map_err(Error::TarSplit)?;
            let mut size = file.into_inner().map_err(|e| Error::TarSplit(e.into_error()))?.written();
            if rest.has_replaced() {
                size = rest.take_replaced(&split, space).map_err(Error::TarSplit)?;
            }
            (applied, rest, decoder, Some(size))
        }
    };
    let decoded = decoder.finish().map_err(Error::Decode)?;
    check(&decoded, expected)?;
    Ok(Extracted { applied, decoded, tar_split_size, image: rest.finish()? })
}

impl<'a> Target<'a> {
    fn space(&self) -> &'a dyn Space {
        match self {
            Target::Overlay(target) => target.space,
            Target::Erofs(target) => target.space,
        }
    }

    /// Writes every member, and reads the tar to its end.
    fn fill<S: ChunkSource, R: Record>(
        self,
        mut reader: Reader<Decoder<S>, R>,
        expected: &Expected,
    ) -> Result<(Applied, Rest<'a>, Decoder<S>, R), Error> {
        let written = self.write(&mut reader).map_err(Error::from);
        let drained = written.and_then(|written| reader.drain().map(|()| written).map_err(Error::Tar));
        match drained {
            Ok((applied, rest)) => {
                let (decoder, record) = reader.finish().map_err(Error::Tar)?;
                Ok((applied, rest, decoder, record))
            }
            Err(e) => Err(blame(e, reader.into_input(), expected)),
        }
    }

    fn write<B: BufRead, R: Record>(self, reader: &mut Reader<B, R>) -> Result<(Applied, Rest<'a>), Failure> {
        match self {
            Target::Overlay(target) => {
                let parked = target.replaced;
                let (applied, replaced) = overlay::apply::apply(reader, target)?;
                Ok((applied, Rest::Overlay(replaced, parked)))
            }
            Target::Erofs(target) => {
                let (applied, filled) = erofs::apply::apply(reader, target)?;
                Ok((applied, Rest::Erofs(Box::new(filled))))
            }
        }
    }
}

/// What is left to do when all members are written.
enum Rest<'a> {
    Overlay(Vec<Replaced>, &'a Dir),
    Erofs(Box<erofs::apply::Filled<'a>>),
}

impl Rest<'_> {
    fn has_replaced(&self) -> bool {
        match self {
            Rest::Overlay(replaced, _) => !replaced.is_empty(),
            Rest::Erofs(filled) => filled.has_replaced(),
        }
    }

    fn take_replaced(&mut self, split: &TarSplitTarget<'_>, space: &dyn Space) -> io::Result<u64> {
        match self {
            Rest::Overlay(replaced, parked) => {
                let names = std::mem::take(replaced).into_iter().map(|Replaced { path, name }| (path, name));
                take_replaced(split, names, |name| parked.open_file(name.as_bytes()), space)
            }
            Rest::Erofs(filled) => {
                let inodes = filled.take_replaced();
                take_replaced(split, inodes, |id| filled.content(id).map_err(io::Error::other), space)
            }
        }
    }

    /// Completes the layer.
    fn finish(self) -> Result<Option<erofs::Summary>, Error> {
        match self {
            Rest::Overlay(..) => Ok(None),
            Rest::Erofs(filled) => {
                let summary = filled.finish().map_err(|e| erofs::apply::explain(b"", e))?;
                Ok(Some(summary))
            }
        }
    }
}

/// The reason why a layer cannot be read: its content, if these are the bytes that were promised, else that they are not.
fn blame<S: ChunkSource>(error: Error, decoder: Decoder<S>, expected: &Expected) -> Error {
    if error.class() != Class::Corrupt {
        return error;
    }
    let blob = decoder.blob();
    blob.and_then(|(digest, size)| check_blob(&digest, size, expected).err()).unwrap_or(error)
}

fn check_blob(digest: &Digest, size: u64, expected: &Expected) -> Result<(), Error> {
    if size != expected.size {
        return Err(Error::Size { want: expected.size, found: size });
    }
    if *digest != expected.blob {
        let (want, found) = (expected.blob.clone(), digest.clone());
        return Err(Error::Digest { what: "blob", promise: "manifest", want, found });
    }
    Ok(())
}

fn check(decoded: &Decoded, expected: &Expected) -> Result<(), Error> {
    check_blob(&decoded.blob, decoded.blob_size, expected)?;
    if decoded.diff_id != expected.diff_id {
        let (want, found) = (expected.diff_id.clone(), decoded.diff_id.clone());
        return Err(Error::Digest { what: "tar", promise: "config", want, found });
    }
    Ok(())
}

/// Writes the tar-split file again with the content that later members replaced: the tree does not hold it any more.
/// `replaced` names each by its path, in order.
fn take_replaced<K, T: Read>(
    split: &TarSplitTarget<'_>,
    replaced: impl IntoIterator<Item = (Vec<u8>, K)>,
    mut open: impl FnMut(K) -> io::Result<T>,
    space: &dyn Space,
) -> io::Result<u64> {
    let temporary = [split.name, b".new"].concat();
    let old = split.dir.open_file(split.name)?;
    let old_size = old.metadata()?.len();
    let new = Reserved::new(split.dir.create_file(&temporary, 0o644)?, space)?;
    // The nth time that a path was replaced is the nth time that the file names it.
    let mut by_path: HashMap<Vec<u8>, VecDeque<K>> = HashMap::new();
    for (path, key) in replaced {
        by_path.entry(path).or_default().push_back(key);
    }
    let find = |path: &[u8]| -> io::Result<Option<T>> {
        by_path.get_mut(path).and_then(VecDeque::pop_front).map(&mut open).transpose()
    };
    let records = TarSplitReader::new(BufReader::new(old));
    let writer = tar_split::rewrite(records, BufWriter::with_capacity(1 << 16, new), find)?;
    let size = writer.into_inner().map_err(io::IntoInnerError::into_error)?.written();
    split.dir.rename(&temporary, split.dir, split.name)?;
    space.release(old_size.div_ceil(BLOCK) * BLOCK);
    Ok(size)
}
