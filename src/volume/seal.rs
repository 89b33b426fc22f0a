//! Sealing: the index files, one sync, then `cache.json`. Nothing changes afterwards.

use std::io::Write as _;
use std::path::Path;

use super::budget::full;
use super::error::{Context, Error};
use super::store::{self, Documents};
use super::{Volume, layout};
use crate::model::digest::Digest;
use crate::model::seal::{CacheManifest, Content};
use crate::sys::{Dir, atomic, remove};

/// Most bytes that `cache.json` may have.
pub(super) const MAX: u64 = 256 << 20;

/// Reads and checks the seal of the volume at `path`.
pub fn read(path: &Path) -> Result<CacheManifest, Error> {
    let shown = path.display().to_string();
    let root = Dir::open(path).context("opening the volume", &shown)?;
    read_from(&root, &shown)
}

pub(super) fn read_from(root: &Dir, path: &str) -> Result<CacheManifest, Error> {
    let bytes = match root.read_file(layout::CACHE, MAX) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::NotSealed { path: path.to_owned() });
        }
        other => other.context("reading", "cache.json")?,
    };
    CacheManifest::parse(&bytes).map_err(|source| Error::Seal { path: path.to_owned(), source })
}

impl Volume {
    /// Writes a document of the registry to the OCI layout, where a later run finds it.
    pub fn write_document(&self, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
        self.write_file(&store::blob_path(digest), bytes)
    }

    /// A document that an earlier run wrote, if it is there and whole.
    pub fn document(&self, digest: &Digest, limit: u64) -> Option<Vec<u8>> {
        let path = store::blob_path(digest);
        let (dir, name) = path.rsplit_once('/')?;
        let bytes = self.root.open_beneath(dir.as_bytes()).ok()?.read_file(name.as_bytes(), limit).ok()?;
        let found = crate::model::digest::Hasher::digest_of(digest.algorithm(), &bytes);
        (found == *digest).then_some(bytes)
    }

    /// Seals the volume. All layers that `content` names are committed; `prefetch` is the list of what starts read first.
    pub fn seal(
        &self,
        content: Content,
        documents: &[Documents],
        prefetch: &[u8],
    ) -> Result<CacheManifest, Error> {
        let json = |source| Error::Json { what: "the index files", source };
        remove::tree(&self.larder, layout::STAGING).context("removing", "staging")?;
        for (path, bytes) in store::files(&content, documents).map_err(json)? {
            self.write_file(&path, &bytes)?;
        }
        self.write_file(layout::PREFETCH, prefetch)?;
        let manifest = CacheManifest::new(content).map_err(json)?;
        let bytes = serde_json::to_vec_pretty(&manifest).map_err(json)?;
        // Room for the seal is taken before the sync, so that nothing can fail for want of it afterwards.
        self.budget.reserve_file(bytes.len() as u64, "cache.json")?;
        // The error of a sync is told once; trying again would seal what was lost.
        self.root
            .sync_file_system()
            .context("flushing the file system of", &self.path.display().to_string())?;
        self.budget.growing(&[&self.root], "cache.json", || {
            atomic::write(&self.root, layout::CACHE, &bytes, 0o644).context("writing", "cache.json")
        })?;
        Ok(manifest)
    }

    /// Takes the seal back from a volume whose content turned out to be wrong, so that nobody uses it.
    pub fn unseal(path: &Path) -> Result<(), Error> {
        let root = Dir::open(path).context("opening the volume", &path.display().to_string())?;
        root.unlink(layout::CACHE).and_then(|()| root.sync()).context("removing", "cache.json")
    }

    /// Writes one of our files, replacing an older one; parents are made.
    fn write_file(&self, path: &str, bytes: &[u8]) -> Result<(), Error> {
        let mut dir = self.root.try_clone().context("opening", path)?;
        let mut parts = path.split('/').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                let room = self.budget.reserve_file(bytes.len() as u64, path)?;
                return self.budget.growing(&[&dir], path, || {
                    if let Some(old) = dir.try_stat(part.as_bytes()).context("examining", path)? {
                        dir.unlink(part.as_bytes()).context("replacing", path)?;
                        self.budget.release(old.allocated.min(room));
                    }
                    let mut file = dir.create_file(part.as_bytes(), 0o644).context("creating", path)?;
                    file.write_all(bytes).context("writing", path)
                });
            }
            dir = match dir.open_dir(part.as_bytes()) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => self.make_dir(&dir, part, path)?,
                other => other.context("opening", path)?,
            };
        }
        Ok(())
    }

    fn make_dir(&self, parent: &Dir, name: &str, path: &str) -> Result<Dir, Error> {
        let block = self.budget.file_system().block;
        self.budget.reserve(block).map_err(|exceeded| full(exceeded, path))?;
        self.budget.growing(&[parent], path, || {
            parent.make_dir(name.as_bytes(), 0o755).context("creating", path)?;
            parent.open_dir(name.as_bytes()).context("opening", path)
        })
    }
}
