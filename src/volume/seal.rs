//! Sealing of a volume: the index files, one sync, then the signature, then `cache.json`. Nothing changes
//! afterwards.
//!
//! The signature is durable before `cache.json` gets its name, and a leftover signature of an interrupted
//! build is removed before that. A sealed volume therefore always has the requested signature, even if the
//! machine stops at any point.

use std::io::{self, ErrorKind, Write as _};
use std::path::Path;

use nix::errno::Errno;

use super::budget::full;
use super::error::Error;
use super::store::{self, Documents};
use super::{Volume, layout};
use larder_model::digest::Digest;
use larder_model::io_error::{Context as _, IoError};
use larder_model::seal::{CacheManifest, Content};
use larder_model::trust::TrustError;
use larder_sys::dir::forgery;
use larder_sys::{Dir, atomic, remove};

/// Maximum size of `cache.json`, in bytes.
pub(super) const MAX: u64 = 256 << 20;

/// Maximum size of `cache.json.sig`, in bytes. Larder's own signatures have 186.
const MAX_SIGNATURE: u64 = 4 << 10;

/// The files of a seal, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Bytes of `cache.json`.
    pub cache_json: Vec<u8>,
    /// Bytes of `cache.json.sig`, if it exists.
    pub signature: Option<Vec<u8>>,
}

impl Files {
    /// Reads the files in the directory of a volume, or of its disk, without checking them.
    ///
    /// # Errors
    /// [`Error::NotSealed`] if there is no `cache.json`; [`Error::Forged`] and [`Error::Trust`] for files of
    /// the wrong type or size.
    pub fn read(root: &Dir, path: &str) -> Result<Self, Error> {
        Ok(Files { cache_json: cache_json(root, path)?, signature: signature(root, path)? })
    }

    /// Writes the files in `root`, the signature first. Afterwards the volume is sealed.
    pub(super) fn write(&self, root: &Dir) -> io::Result<()> {
        match &self.signature {
            Some(signature) => atomic::write(root, layout::SIGNATURE, signature, 0o644)?,
            None => remove_signature(root)?,
        }
        atomic::write(root, layout::CACHE, &self.cache_json, 0o644)
    }
}

fn cache_json(root: &Dir, path: &str) -> Result<Vec<u8>, Error> {
    match root.read_file(layout::CACHE, MAX) {
        Err(e) if e.kind() == ErrorKind::NotFound => Err(Error::NotSealed { path: path.to_owned() }),
        Err(e) => match forgery(&e) {
            Some(fault) => Err(Error::Forged { path: path.to_owned(), what: "cache.json", fault }),
            None => Err(IoError::new("reading", "cache.json", e).into()),
        },
        Ok(bytes) => Ok(bytes),
    }
}

/// Reads `cache.json.sig`; `None` if it does not exist.
pub(super) fn signature(root: &Dir, path: &str) -> Result<Option<Vec<u8>>, Error> {
    let none = |what: String| Error::Trust { path: path.to_owned(), source: TrustError::Malformed(what) };
    match root.read_file(layout::SIGNATURE, MAX_SIGNATURE) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) => match e.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT) => Ok(None),
            Some(Errno::EINVAL | Errno::ELOOP) => Err(none("it is not a regular file".to_owned())),
            Some(Errno::EFBIG) => Err(none(format!("it has more than {MAX_SIGNATURE} bytes"))),
            _ => Err(IoError::new("reading", "cache.json.sig", e).into()),
        },
    }
}

/// Removes leftover signature files of an interrupted build.
fn remove_signature(root: &Dir) -> io::Result<()> {
    let mut found = false;
    for name in [layout::SIGNATURE, layout::SIGNATURE_UNFINISHED] {
        match root.unlink(name) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            done => {
                done?;
                found = true;
            }
        }
    }
    if found { root.sync() } else { Ok(()) }
}

/// Reads and checks the seal of the volume at `path`.
///
/// # Errors
/// [`Error::NotSealed`], [`Error::Forged`], [`Error::Seal`], and those of open(2).
pub fn read(path: &Path) -> Result<CacheManifest, Error> {
    let shown = path.display().to_string();
    let root = Dir::open(path).context("opening the volume", &shown)?;
    read_from(&root, &shown)
}

pub(super) fn read_from(root: &Dir, path: &str) -> Result<CacheManifest, Error> {
    parse(&cache_json(root, path)?, path)
}

/// Parses and checks the bytes of the `cache.json` of the volume at `path`.
///
/// # Errors
/// [`Error::Seal`] with the problem.
pub fn parse(cache_json: &[u8], path: &str) -> Result<CacheManifest, Error> {
    CacheManifest::parse(cache_json).map_err(|source| Error::Seal { path: path.to_owned(), source })
}

/// A function that signs the bytes of `cache.json` and returns those of `cache.json.sig`.
pub type Sign<'a> = dyn Fn(&[u8]) -> Result<Vec<u8>, Error> + 'a;

impl Volume {
    /// Writes a document of the registry to the OCI layout, so that a later run can reuse it.
    ///
    /// # Errors
    /// [`Error::Full`], and those of writing files.
    pub fn write_document(&self, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
        self.write_file(&store::blob_path(digest), bytes)
    }

    /// Returns a document that an earlier run wrote, if it exists and its digest matches.
    pub fn document(&self, digest: &Digest, limit: u64) -> Option<Vec<u8>> {
        let path = store::blob_path(digest);
        let (dir, name) = path.rsplit_once('/')?;
        let bytes = self.root.open_beneath(dir.as_bytes()).ok()?.read_file(name.as_bytes(), limit).ok()?;
        let found = larder_model::digest::Hasher::digest_of(digest.algorithm(), &bytes);
        (found == *digest).then_some(bytes)
    }

    /// Seals the volume. All layers in `content` must be committed. `prefetch` is the list of files to read
    /// first at start. With `sign`, the seal is signed.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Sign`], and those of writing and flushing files.
    pub fn seal(
        &self,
        content: Content,
        documents: &[Documents],
        prefetch: &[u8],
        sign: Option<&Sign<'_>>,
    ) -> Result<CacheManifest, Error> {
        let json = |source| Error::Json { what: "the index files", source };
        remove::tree(&self.larder, layout::STAGING).context("removing", "staging")?;
        for (path, bytes) in store::files(&content, documents).map_err(json)? {
            self.write_file(&path, &bytes)?;
        }
        self.write_file(layout::PREFETCH, prefetch)?;
        let manifest = CacheManifest::new(content).map_err(json)?;
        let cache_json = serde_json::to_vec_pretty(&manifest).map_err(json)?;
        let signature = sign.map(|sign| sign(&cache_json)).transpose()?;
        let files = Files { cache_json, signature };
        // Reserve the space for the seal before the sync, so that nothing can fail for lack of space
        // afterwards.
        self.budget.reserve_file(files.cache_json.len() as u64, "cache.json")?;
        if let Some(signature) = &files.signature {
            self.budget.reserve_file(signature.len() as u64, "cache.json.sig")?;
        }
        // The kernel reports a lost write only once. A retry would seal the loss.
        self.root.sync_file_system().context("flushing the file system of", self.path.display())?;
        self.budget.with_growth(&[&self.root], "cache.json", || {
            Ok(files.write(&self.root).context("writing", "cache.json")?)
        })?;
        Ok(manifest)
    }

    /// Removes the seal of a volume whose content turned out to be wrong, so that it is not used.
    ///
    /// # Errors
    /// Those of unlink(2) and fsync(2).
    pub fn unseal(path: &Path) -> Result<(), Error> {
        let root = Dir::open(path).context("opening the volume", path.display())?;
        Ok(root
            .unlink(layout::CACHE)
            .and_then(|()| remove_signature(&root))
            .and_then(|()| root.sync())
            .context("removing", "cache.json")?)
    }

    /// Writes one of Larder's own files, replacing an older one. Missing parents are created.
    fn write_file(&self, path: &str, bytes: &[u8]) -> Result<(), Error> {
        let mut dir = self.root.try_clone().context("opening", path)?;
        let mut parts = path.split('/').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                let room = self.budget.reserve_file(bytes.len() as u64, path)?;
                return self.budget.with_growth(&[&dir], path, || {
                    if let Some(old) = dir.try_stat(part.as_bytes()).context("examining", path)? {
                        dir.unlink(part.as_bytes()).context("replacing", path)?;
                        self.budget.release(old.allocated.min(room));
                    }
                    let mut file = dir.create_file(part.as_bytes(), 0o644).context("creating", path)?;
                    Ok(file.write_all(bytes).context("writing", path)?)
                });
            }
            dir = match dir.open_dir(part.as_bytes()) {
                Err(e) if e.kind() == ErrorKind::NotFound => self.make_dir(&dir, part, path)?,
                other => other.context("opening", path)?,
            };
        }
        Ok(())
    }

    fn make_dir(&self, parent: &Dir, name: &str, path: &str) -> Result<Dir, Error> {
        let block = self.budget.file_system().block;
        self.budget.reserve(block).map_err(|exceeded| full(exceeded, path))?;
        self.budget.with_growth(&[parent], path, || {
            parent.make_dir(name.as_bytes(), 0o755).context("creating", path)?;
            Ok(parent.open_dir(name.as_bytes()).context("opening", path)?)
        })
    }
}
