//! Writes owner, mode, extended attributes and time of an inode, in the only order that preserves them all.
//! chown(2) clears setuid and file capabilities, a POSIX ACL changes the mode, and every change updates the
//! time.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;

use super::super::error::{Context, Error, Fault};
use super::super::metadata::{Metadata, OPAQUE_XATTR};
use super::super::path::escape;
use larder_model::seal::Lost;
use larder_sys::{Dir, FileType, Stat, dir, xattr};

/// The privileges of this process for writing metadata.
#[derive(Clone, Copy, Debug)]
pub struct Rights {
    /// Owner and group of new inodes.
    pub ids: (u32, u32),
    /// `true` if trusted.* attributes can be written (`CAP_SYS_ADMIN` in the initial user namespace).
    pub trusted: bool,
    /// `true` if metadata that cannot be stored is recorded as lost instead of failing the build.
    pub rootless: bool,
}

/// Writes metadata and records what could not be stored.
#[derive(Debug)]
pub struct Writer<'a> {
    /// The privileges of this process.
    pub rights: Rights,
    /// The list of losses.
    pub lost: &'a mut Vec<Lost>,
}

impl Writer<'_> {
    /// Sets the metadata of a regular file that was created with exactly the permission bits of `metadata`.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Fault::AttributeMalformed`].
    pub fn new_file(&mut self, file: &File, path: &[u8], metadata: &Metadata) -> Result<(), Error> {
        let own = (metadata.uid, metadata.gid) == self.rights.ids;
        if !own {
            let result = dir::set_owner(file, metadata.uid, metadata.gid);
            self.owner(result, path, metadata)?;
        }
        // chown clears setuid and setgid, and creation does not set them.
        if metadata.mode & 0o7000 != 0 {
            dir::set_mode(file, metadata.mode).context("setting the mode of", path)?;
        }
        self.xattrs(path, metadata, |name, value| xattr::set(file, name, value))?;
        dir::set_times(file, metadata.mtime).context("setting the time of", path)?;
        self.time(path, metadata, || dir::stat_fd(file))
    }

    /// Sets the metadata of a directory through its descriptor.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Fault::AttributeMalformed`].
    pub fn directory(&mut self, dir: &Dir, path: &[u8], metadata: &Metadata) -> Result<(), Error> {
        let result = dir::set_owner(dir, metadata.uid, metadata.gid);
        self.owner(result, path, metadata)?;
        dir::set_mode(dir, metadata.mode).context("setting the mode of", path)?;
        self.xattrs(path, metadata, |name, value| xattr::set(dir, name, value))?;
        dir::set_times(dir, metadata.mtime).context("setting the time of", path)?;
        self.time(path, metadata, || dir.stat_self())
    }

    /// Sets the metadata of any other inode, or of an existing one, by its name.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Fault::AttributeMalformed`].
    pub fn named(
        &mut self,
        dir: &Dir,
        name: &[u8],
        path: &[u8],
        file_type: FileType,
        metadata: &Metadata,
    ) -> Result<(), Error> {
        let stat = dir.stat(name).context("examining", path)?;
        // chown strips file capabilities even if it changes nothing else.
        if (stat.uid, stat.gid) != (metadata.uid, metadata.gid) {
            let result = dir.set_owner(name, metadata.uid, metadata.gid);
            self.owner(result, path, metadata)?;
        }
        if file_type != FileType::Symlink {
            dir.set_mode(name, metadata.mode).context("setting the mode of", path)?;
        }
        self.xattrs(path, metadata, |key, value| xattr::set_at(dir, name, key, value))?;
        dir.set_times(name, metadata.mtime).context("setting the time of", path)?;
        self.time(path, metadata, || dir.stat(name))
    }

    /// Records a loss if the file system stored another time, because file systems silently clamp times to
    /// their range.
    fn time(
        &mut self,
        path: &[u8],
        metadata: &Metadata,
        stat: impl Fn() -> io::Result<Stat>,
    ) -> Result<(), Error> {
        if !metadata.has_common_time() && stat().context("examining", path)?.mtime != metadata.mtime {
            self.record_loss(path, "mtime".to_owned());
        }
        Ok(())
    }

    /// Marks a directory as opaque for overlayfs.
    ///
    /// # Errors
    /// [`Error::Io`], if the attribute cannot be written.
    pub fn opaque(&mut self, dir: impl AsFd, path: &[u8]) -> Result<(), Error> {
        xattr::set(dir, OPAQUE_XATTR, b"y").context("setting the opaque attribute of", path)
    }

    /// Records a loss of metadata.
    pub fn record_loss(&mut self, path: &[u8], what: String) {
        self.lost.push(Lost { path: escape(path), what });
    }

    /// Reports whether an error can be recorded as a loss instead of failing the build.
    pub fn can_record_loss(&self, error: &io::Error) -> bool {
        let refused = matches!(
            error.raw_os_error().map(Errno::from_raw),
            Some(Errno::EPERM | Errno::EACCES | Errno::EOPNOTSUPP | Errno::EINVAL)
        );
        self.rights.rootless && refused
    }

    fn owner(&mut self, result: io::Result<()>, path: &[u8], metadata: &Metadata) -> Result<(), Error> {
        match result {
            Err(e) if self.can_record_loss(&e) => {
                self.record_loss(path, format!("owner {}:{}", metadata.uid, metadata.gid));
                Ok(())
            }
            other => other.context("setting the owner of", path),
        }
    }

    fn xattrs(
        &mut self,
        path: &[u8],
        metadata: &Metadata,
        set: impl Fn(&[u8], &[u8]) -> io::Result<()>,
    ) -> Result<(), Error> {
        for (name, value) in &metadata.xattrs {
            let Err(error) = set(name, value) else { continue };
            match error.raw_os_error().map(Errno::from_raw) {
                // Attribute namespaces that Linux lacks (those of macOS), and user.* on inodes that are not
                // files or directories. No runtime on Linux could show them, and runtimes skip them.
                Some(Errno::EOPNOTSUPP) => self.record_loss(path, format!("xattr {}", escape(name))),
                Some(Errno::EPERM) if name.starts_with(b"user.") => {
                    self.record_loss(path, format!("xattr {}", escape(name)))
                }
                // Only directories have a default ACL.
                Some(Errno::EACCES) if name == b"system.posix_acl_default" => {
                    return Err(Error::hostile(path, Fault::AttributeMalformed(escape(name))));
                }
                _ if self.can_record_loss(&error) => {
                    self.record_loss(path, format!("xattr {}", escape(name)))
                }
                Some(Errno::EINVAL | Errno::ERANGE | Errno::E2BIG) => {
                    return Err(Error::hostile(path, Fault::AttributeMalformed(escape(name))));
                }
                _ => return Err(Error::io("setting an extended attribute of", path, error)),
            }
        }
        Ok(())
    }
}
