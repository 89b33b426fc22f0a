//! Contents that a later member of the same tar replaced. They leave the tree, but the tar-split file still
//! needs them.

use super::super::error::{Context, Error};
use larder_sys::Dir;

/// The content of a member that a later member replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// Path of the file in the tar-split file.
    pub path: Vec<u8>,
    /// Name of the content in the directory for replaced files.
    pub name: String,
}

/// Replaced contents, stored outside the tree until they are written to the tar-split file.
#[derive(Debug)]
pub(super) struct ReplacedFiles<'a> {
    pub(super) dir: &'a Dir,
    pub(super) keep: bool,
    pub(super) replaced: Vec<Replaced>,
}

impl ReplacedFiles<'_> {
    /// Moves a file out of the tree. Returns by how many bytes the directory of replaced files grew. Returns
    /// `None` if contents are not kept; the caller then removes the file.
    pub(super) fn move_out(&mut self, dir: &Dir, name: &[u8], at: &[u8]) -> Result<Option<u64>, Error> {
        if !self.keep {
            return Ok(None);
        }
        let before = self.dir.stat_self().context("moving the replaced file", at)?.allocated;
        let new_name = self.replaced.len().to_string();
        dir.rename(name, self.dir, new_name.as_bytes()).context("moving the replaced file", at)?;
        self.replaced.push(Replaced { path: at.to_vec(), name: new_name });
        let after = self.dir.stat_self().context("moving the replaced file", at)?.allocated;
        Ok(Some(after.saturating_sub(before)))
    }
}
