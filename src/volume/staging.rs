//! Staging directories, in which layers are written. A dropped one is deleted. On a disk with enough space,
//! the deletion is deferred to the seal or to the next run.

use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;

use super::budget::{Account, Budget};
use super::error::Error;
use super::{isolate, layout};
use larder_model::io_error::Context as _;
use larder_model::job::LayerFormat;
use larder_sys::{Dir, remove, space};

/// Directory for content that a later member of the tar replaced.
const REPLACED: &[u8] = b"replaced";

/// The directory of a layer that is not committed yet.
#[derive(Debug)]
pub struct Staging {
    parent: Dir,
    name: String,
    dir: Dir,
    account: Arc<Account>,
    /// `true` if the directory must stay when this value is dropped.
    placed: bool,
}

impl Staging {
    pub(super) fn new(
        parent: Dir,
        name: &str,
        budget: Arc<Budget>,
        format: LayerFormat,
    ) -> Result<Self, Error> {
        let account = Arc::new(Account::new(budget));
        let block = account.block();
        // The directory itself, the entry in its parent, and diff/.
        let room = 3 * block;
        account.reserve(room).map_err(|exceeded| super::budget::full(exceeded, "a staging directory"))?;
        let made = parent.make_dir(name.as_bytes(), 0o700).context("creating staging directory", name);
        made.map_err(|e| account.budget().explained(e))?;
        let dir = parent.open_dir(name.as_bytes()).context("opening staging directory", name)?;
        let staging = Staging { parent, name: name.to_owned(), dir, account, placed: false };
        // Once in place, it is world-readable like the rest of the store. Until then `.larder` blocks access
        // to it.
        isolate(&staging.dir).context("preparing staging directory", name)?;
        larder_sys::dir::set_mode(&staging.dir, 0o755).context("preparing staging directory", name)?;
        if format == LayerFormat::Erofs {
            return Ok(staging);
        }
        staging
            .dir
            .make_dir(layout::DIFF, 0o700)
            .context("creating", "diff")
            .map_err(|e| staging.account.budget().explained(e))?;
        isolate(&staging.diff()?).context("preparing", "diff")?;
        Ok(staging)
    }

    /// Returns the staging directory.
    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Opens the directory tree of the layer.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn diff(&self) -> Result<Dir, Error> {
        Ok(self.dir.open_dir(layout::DIFF).context("opening", "diff")?)
    }

    /// Opens the directory for content that a later member replaces, and creates it if missing.
    ///
    /// # Errors
    /// Those of mkdir(2) and open(2); [`Error::Full`].
    pub fn replaced(&self) -> Result<Dir, Error> {
        let dir = self.dir.ensure_dir(REPLACED, 0o700).context("creating", "replaced");
        dir.map_err(|e| self.account.budget().explained(e))
    }

    /// Removes the replaced content, once the tar-split file contains it.
    ///
    /// # Errors
    /// Those of reading and removing files.
    pub fn clear_replaced(&self) -> Result<(), Error> {
        let replaced = self.replaced()?;
        if self.account.budget().defers_deletions()
            && !replaced.names().context("listing", "replaced")?.is_empty()
        {
            let aside = format!("{}.replaced", self.name);
            return Ok(self
                .dir
                .rename_new(REPLACED, &self.parent, aside.as_bytes())
                .context("moving aside", "replaced")?);
        }
        let mut freed = 0;
        for name in replaced.names().context("listing", "replaced")? {
            let stat = replaced.stat(&name).context("examining", "replaced")?;
            // An inode with another name in the tree stays allocated.
            if stat.links == 1 {
                freed += stat.allocated;
            }
        }
        remove::tree(&self.dir, REPLACED).context("removing", "replaced")?;
        self.account.release(freed);
        Ok(())
    }

    /// Returns the account for the bytes of this layer.
    pub fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// Creates a file next to the tree.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn create(&self, name: &[u8]) -> Result<File, Error> {
        Ok(self.dir.create_file(name, 0o644).context("creating", String::from_utf8_lossy(name))?)
    }

    /// Creates a file next to the tree, and opens it for reading and writing.
    ///
    /// # Errors
    /// Those of open(2); [`Error::Full`].
    pub fn create_image(&self, name: &[u8]) -> Result<File, Error> {
        // World-readable, like the rest of a volume.
        let created = self.create(name).and_then(|_| {
            Ok(self.dir.open_file_to_write(name).context("opening", String::from_utf8_lossy(name))?)
        });
        created.map_err(|e| self.account.budget().explained(e))
    }

    /// Opens a file that was written here; `None` if it does not exist.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn image(&self, name: &[u8]) -> Result<Option<File>, Error> {
        match self.dir.open_file(name) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            other => Ok(other.context("opening", String::from_utf8_lossy(name)).map(Some)?),
        }
    }

    /// Copies a file of another volume here. The copy shares blocks with the original if the file system
    /// supports it, but never the inode: a fault in one build must not affect the layers of another. Space is
    /// reserved for the whole file, as `du` counts it.
    ///
    /// # Errors
    /// [`Error::Full`], and those of reading and writing files.
    pub fn take(&self, from: &Dir, name: &[u8], here: &[u8]) -> Result<(), Error> {
        let what = String::from_utf8_lossy(name);
        let stat = from.stat(name).context("examining", &what)?;
        let block = self.account.block();
        let room = stat.size.max(stat.allocated).div_ceil(block) * block;
        self.account.reserve(room).map_err(|exceeded| super::budget::full(exceeded, &what))?;
        let copied = from.open_file(name).context("opening", &what).map_err(Error::from).and_then(|from| {
            let to = self.create(here)?;
            let shared = space::reflink(&from, &to).context("copying", &what)?;
            if !shared {
                space::copy_data(&from, &to).context("copying", &what)?;
            }
            Ok(())
        });
        copied.map_err(|e| self.account.budget().explained(e))
    }

    /// Writes a small file next to the tree.
    pub(super) fn write(&self, name: &[u8], bytes: &[u8]) -> Result<(), Error> {
        let what = String::from_utf8_lossy(name);
        let block = self.account.block();
        let room = (bytes.len() as u64).div_ceil(block) * block;
        self.account.reserve(room).map_err(|exceeded| super::budget::full(exceeded, &what))?;
        let written =
            self.create(name).and_then(|mut file| Ok(file.write_all(bytes).context("writing", &what)?));
        written.map_err(|e| self.account.budget().explained(e))
    }

    /// Moves the directory into place. From then on its bytes belong to the volume.
    pub(super) fn place(mut self, to: &Dir, name: &[u8]) -> Result<(), Error> {
        self.parent.rename_new(self.name.as_bytes(), to, name).context("placing the layer", &self.name)?;
        self.placed = true;
        self.account.keep();
        Ok(())
    }
}

impl Staging {
    /// Discards the rest after the useful files were moved into place.
    pub(super) fn discard_rest(mut self) -> Result<(), Error> {
        let left = space::occupied(&self.dir).context("measuring the staging directory", &self.name)?;
        if !self.account.budget().defers_deletions() {
            remove::tree(&self.parent, self.name.as_bytes())
                .context("removing the staging directory", &self.name)?;
            // The space for the entry in its parent stays reserved.
            self.account.release(left);
        }
        self.placed = true;
        self.account.keep();
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.placed
            && !self.account.budget().defers_deletions()
            && let Err(e) = remove::tree(&self.parent, self.name.as_bytes())
        {
            // The next open deletes it.
            tracing::warn!(staging = self.name, error = %e, "cannot remove a staging directory");
        }
    }
}
