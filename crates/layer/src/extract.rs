//! Extracts one layer from compressed chunks to a tree: decode, read, apply, and write its tar-split file.
//! Blocking.

use std::collections::{HashMap, VecDeque};
use std::io::{self, BufRead, BufReader, BufWriter, Read};

use super::applied::Applied;
use super::apply::Failure;
use super::decode::{Decoded, Decoder};
use super::error::Error as SinkError;
use super::limits::Limits;
use super::overlay::replaced::Replaced;
use super::reserved::{BLOCK, Reserved};
use super::space::Space;
use super::tar::{Reader, Record};
use super::tar_split::{self, TarSplit, TarSplitReader};
use super::{erofs, erofs_sink, overlay};
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_sys::Dir;

/// The digests and sizes that a layer must have.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Digest of the compressed blob.
    pub blob: Digest,
    /// Size of the blob, bytes.
    pub size: u64,
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
}

/// The destination of a layer, and its format.
#[derive(Debug)]
pub enum Target<'a> {
    /// A directory tree in overlayfs form.
    Overlay(overlay::apply::Target<'a>),
    /// An EROFS image.
    Erofs(erofs_sink::apply::Target<'a>),
}

/// The destination of the tar-split file.
#[derive(Debug)]
pub struct TarSplitTarget<'a> {
    /// The directory that contains the file.
    pub dir: &'a Dir,
    /// The name of the file in `dir`.
    pub name: &'a [u8],
}

/// A layer on disk that is verified, but not settled.
#[derive(Clone, Debug)]
pub struct Extracted {
    /// The parts that remain to be settled.
    pub applied: Applied,
    /// Digests and sizes of the blob and the tar.
    pub decoded: Decoded,
    /// Size of the tar-split file, bytes; `None` if none is kept.
    pub tar_split_size: Option<u64>,
    /// Summary of the EROFS image; `None` for other formats.
    pub image: Option<erofs::Summary>,
}

/// The reason why a layer cannot be extracted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The blob or its tar is broken, or the stream failed.
    #[error(transparent)]
    Tar(super::tar::Error),
    /// The compressed data is broken.
    #[error(transparent)]
    Decode(super::decode::Error),
    /// A member cannot be written.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The content does not match its digest.
    #[error(
        "the {part} has digest {found}, expected {want}: the content was changed, or the {document} is wrong"
    )]
    Digest {
        /// `blob` or `tar`.
        part: &'static str,
        /// The document that contains the expected digest.
        document: &'static str,
        /// The expected digest.
        want: Digest,
        /// The actual digest.
        found: Digest,
    },
    /// The blob does not have the expected size.
    #[error("the blob has {found} bytes, but the manifest specifies {want}")]
    Size {
        /// Expected size, bytes.
        want: u64,
        /// Actual size, bytes.
        found: u64,
    },
    /// The tar-split file cannot be written.
    #[error("writing the tar-split file: {0}")]
    TarSplit(io::Error),
}

impl Error {
    /// Returns the same error, except if the file system was full: then the error is the shortage that
    /// `space` reports.
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

    /// Reports whether the blob differs from the expected one. Another host might have the right one.
    pub fn is_blob_mismatch(&self) -> bool {
        matches!(self, Error::Size { .. } | Error::Digest { part: "blob", .. })
    }

    /// Returns the error class, which determines retries and the exit code.
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

/// Extracts a layer and checks it against the expected digests and sizes.
///
/// # Errors
/// See [`Error`]. A partial tree may remain in the target.
pub fn extract(
    decoder: Decoder<'_>,
    target: Target<'_>,
    split: Option<TarSplitTarget<'_>>,
    limits: &Limits,
    expected: &Expected,
) -> Result<Extracted, Error> {
    let space = target.space();
    let (applied, remaining, decoder, tar_split_size) = match split {
        None => {
            let reader = Reader::new(decoder, (), *limits);
            let (applied, remaining, decoder, ()) = target.fill(reader, expected)?;
            (applied, remaining, decoder, None)
        }
        Some(split) => {
            let file = split.dir.create_file(split.name, 0o644).map_err(Error::TarSplit)?;
            let file = Reserved::new(file, space).map_err(Error::TarSplit)?;
            let writer = TarSplit::new(BufWriter::with_capacity(1 << 16, file));
            let reader = Reader::new(decoder, writer, *limits);
            let (applied, mut remaining, decoder, writer) = target.fill(reader, expected)?;
            let file = writer.finish().map_err(Error::TarSplit)?;
            let mut size = file.into_inner().map_err(|e| Error::TarSplit(e.into_error()))?.written();
            if remaining.has_replaced() {
                size = remaining.take_replaced(&split, space).map_err(Error::TarSplit)?;
            }
            (applied, remaining, decoder, Some(size))
        }
    };
    let decoded = decoder.finish().map_err(Error::Decode)?;
    check(&decoded, expected)?;
    Ok(Extracted { applied, decoded, tar_split_size, image: remaining.finish()? })
}

impl<'a> Target<'a> {
    fn space(&self) -> &'a dyn Space {
        match self {
            Target::Overlay(target) => target.space,
            Target::Erofs(target) => target.space,
        }
    }

    /// Writes every member and reads the tar to its end.
    fn fill<'d, R: Record>(
        self,
        mut reader: Reader<Decoder<'d>, R>,
        expected: &Expected,
    ) -> Result<(Applied, Remaining<'a>, Decoder<'d>, R), Error> {
        let written = self.write(&mut reader).map_err(Error::from);
        let drained = written.and_then(|written| reader.drain().map(|()| written).map_err(Error::Tar));
        match drained {
            Ok((applied, remaining)) => {
                let (decoder, record) = reader.finish().map_err(Error::Tar)?;
                Ok((applied, remaining, decoder, record))
            }
            Err(e) => Err(blame(e, reader.into_input(), expected)),
        }
    }

    fn write<B: BufRead, R: Record>(
        self,
        reader: &mut Reader<B, R>,
    ) -> Result<(Applied, Remaining<'a>), Failure> {
        match self {
            Target::Overlay(target) => {
                let replaced_dir = target.replaced;
                let (applied, replaced) = overlay::apply::apply(reader, target)?;
                Ok((applied, Remaining::Overlay(replaced, replaced_dir)))
            }
            Target::Erofs(target) => {
                let (applied, filled) = erofs_sink::apply::apply(reader, target)?;
                Ok((applied, Remaining::Erofs(Box::new(filled))))
            }
        }
    }
}

/// The work that remains after all members are written.
enum Remaining<'a> {
    Overlay(Vec<Replaced>, &'a Dir),
    Erofs(Box<erofs_sink::apply::Filled<'a>>),
}

impl Remaining<'_> {
    fn has_replaced(&self) -> bool {
        match self {
            Remaining::Overlay(replaced, _) => !replaced.is_empty(),
            Remaining::Erofs(filled) => filled.has_replaced(),
        }
    }

    fn take_replaced(&mut self, split: &TarSplitTarget<'_>, space: &dyn Space) -> io::Result<u64> {
        match self {
            Remaining::Overlay(replaced, replaced_dir) => {
                let names = std::mem::take(replaced).into_iter().map(|Replaced { path, name }| (path, name));
                take_replaced(split, names, |name| replaced_dir.open_file(name.as_bytes()), space)
            }
            Remaining::Erofs(filled) => {
                let inodes = filled.take_replaced();
                take_replaced(split, inodes, |id| filled.content(id).map_err(io::Error::other), space)
            }
        }
    }

    /// Completes the layer.
    fn finish(self) -> Result<Option<erofs::Summary>, Error> {
        match self {
            Remaining::Overlay(..) => Ok(None),
            Remaining::Erofs(filled) => {
                let summary = filled.finish().map_err(|e| erofs_sink::apply::explain(b"", e))?;
                Ok(Some(summary))
            }
        }
    }
}

/// Returns the reason why a layer cannot be read: `error` if the blob is the expected one, otherwise the
/// mismatch.
fn blame(error: Error, decoder: Decoder<'_>, expected: &Expected) -> Error {
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
        return Err(Error::Digest { part: "blob", document: "manifest", want, found });
    }
    Ok(())
}

fn check(decoded: &Decoded, expected: &Expected) -> Result<(), Error> {
    check_blob(&decoded.blob, decoded.blob_size, expected)?;
    if decoded.diff_id != expected.diff_id {
        let (want, found) = (expected.diff_id.clone(), decoded.diff_id.clone());
        return Err(Error::Digest { part: "tar", document: "config", want, found });
    }
    Ok(())
}

/// Rewrites the tar-split file so that it includes content that later members replaced, because the tree no
/// longer contains it. `replaced` lists each replaced file by its path, in tar order.
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
    // The nth replacement of a path belongs to the nth occurrence of that path in the file.
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
