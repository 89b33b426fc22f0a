//! Read access to the tree of a layer on a volume, in either format: a directory or an EROFS image.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use super::erofs::read::{ImageFile, ImageNode};
use super::metadata::Metadata;
use super::tar::Region;
use larder_sys::space::next_data;
use larder_sys::{Dir, FileType, Stat, xattr};

/// An open directory of a layer.
#[derive(Debug)]
pub enum StoredDir {
    /// A directory of the volume's file system.
    Directory(Dir),
    /// A directory in an EROFS image.
    Image(ImageNode),
}

/// An open regular file of a layer.
#[derive(Debug)]
pub enum StoredFile {
    /// A file of the volume's file system.
    File(File),
    /// A file in an EROFS image.
    Image(ImageFile),
}

type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

impl StoredDir {
    /// Opens the directory `name`. A symbolic link gives `ENOTDIR`.
    ///
    /// # Errors
    /// The error of the file system or the image.
    pub fn open_dir(&self, name: &[u8]) -> io::Result<Self> {
        match self {
            StoredDir::Directory(dir) => dir.open_dir(name).map(StoredDir::Directory),
            StoredDir::Image(node) => match found(node, name)? {
                below if below.file_type() == FileType::Directory => Ok(StoredDir::Image(below)),
                _ => Err(io::ErrorKind::NotADirectory.into()),
            },
        }
    }

    /// Creates a second handle of the same directory.
    ///
    /// # Errors
    /// The error of duplicating the descriptor.
    pub fn try_clone(&self) -> io::Result<Self> {
        match self {
            StoredDir::Directory(dir) => dir.try_clone().map(StoredDir::Directory),
            StoredDir::Image(node) => Ok(StoredDir::Image(node.clone())),
        }
    }

    /// Returns the file attributes of the directory itself.
    ///
    /// # Errors
    /// The error of the file system.
    pub fn stat_self(&self) -> io::Result<Stat> {
        match self {
            StoredDir::Directory(dir) => dir.stat_self(),
            StoredDir::Image(node) => Ok(node.stat()),
        }
    }

    /// Returns the file attributes of `name` without following it.
    ///
    /// # Errors
    /// `NotFound`, or the error of the file system or the image.
    pub fn stat(&self, name: &[u8]) -> io::Result<Stat> {
        match self {
            StoredDir::Directory(dir) => dir.stat(name),
            StoredDir::Image(node) => Ok(found(node, name)?.stat()),
        }
    }

    /// Returns the file attributes of `name` without following it; `None` if the name does not exist.
    ///
    /// # Errors
    /// The error of the file system or the image.
    pub fn try_stat(&self, name: &[u8]) -> io::Result<Option<Stat>> {
        match self {
            StoredDir::Directory(dir) => dir.try_stat(name),
            StoredDir::Image(node) => Ok(node.lookup(name)?.map(|node| node.stat())),
        }
    }

    /// Returns the names in the directory, unordered.
    ///
    /// # Errors
    /// The error of the file system or the image.
    pub fn names(&self) -> io::Result<Vec<Vec<u8>>> {
        match self {
            StoredDir::Directory(dir) => dir.names(),
            StoredDir::Image(node) => node.names(),
        }
    }

    /// Returns the target of the symbolic link `name`.
    ///
    /// # Errors
    /// `NotFound`, or the error of the file system or the image.
    pub fn read_link(&self, name: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            StoredDir::Directory(dir) => dir.read_link(name),
            StoredDir::Image(node) => found(node, name)?.target(),
        }
    }

    /// Returns all extended attributes of the directory itself, sorted by name.
    ///
    /// # Errors
    /// The error of the file system or the image.
    pub fn xattrs_self(&self) -> io::Result<Attributes> {
        match self {
            StoredDir::Directory(dir) => xattr::all(dir),
            StoredDir::Image(node) => node.xattrs(),
        }
    }

    /// Returns the value of one extended attribute of the directory itself; `None` if it does not have it.
    ///
    /// # Errors
    /// The error of the file system or the image.
    pub fn xattr_self(&self, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
        match self {
            StoredDir::Directory(dir) => xattr::get(dir, name),
            StoredDir::Image(node) => {
                Ok(node.xattrs()?.into_iter().find(|(known, _)| known == name).map(|(_, value)| value))
            }
        }
    }

    /// Returns all extended attributes of `name`, which is not followed, sorted by name.
    ///
    /// # Errors
    /// `NotFound`, or the error of the file system or the image.
    pub fn xattrs(&self, name: &[u8]) -> io::Result<Attributes> {
        match self {
            StoredDir::Directory(dir) => xattr::all_at(dir, name),
            StoredDir::Image(node) => found(node, name)?.xattrs(),
        }
    }

    /// Returns the metadata of the directory itself, without attributes of overlayfs and SELinux.
    ///
    /// # Errors
    /// The error of the file system or the image.
    pub fn metadata_self(&self) -> io::Result<Metadata> {
        Ok(Metadata::stored(&self.stat_self()?, self.xattrs_self()?))
    }

    /// Returns the metadata of `name`, whose file attributes are `stat`, without attributes of overlayfs and
    /// SELinux.
    ///
    /// # Errors
    /// `NotFound`, or the error of the file system or the image.
    pub fn metadata(&self, name: &[u8], stat: &Stat) -> io::Result<Metadata> {
        Ok(Metadata::stored(stat, self.xattrs(name)?))
    }

    /// Opens the regular file `name` for reading. Never follows a link, and never opens a device.
    ///
    /// # Errors
    /// `NotFound`, or the error of the file system or the image.
    pub fn open_file(&self, name: &[u8]) -> io::Result<StoredFile> {
        match self {
            StoredDir::Directory(dir) => dir.open_file(name).map(StoredFile::File),
            StoredDir::Image(node) => found(node, name)?.content().map(StoredFile::Image),
        }
    }
}

fn found(node: &ImageNode, name: &[u8]) -> io::Result<ImageNode> {
    node.lookup(name)?.ok_or_else(|| io::ErrorKind::NotFound.into())
}

impl StoredFile {
    /// Returns the regions that contain data; the rest are holes.
    ///
    /// # Errors
    /// The error of the file system or the image.
    pub fn regions(&self) -> io::Result<Vec<Region>> {
        match self {
            StoredFile::Image(file) => file.regions(),
            StoredFile::File(file) => {
                let (mut regions, mut at) = (Vec::new(), 0);
                while let Some(data) = next_data(file, at)? {
                    at = data.end;
                    regions.push(Region { offset: data.start, length: data.end - data.start });
                }
                Ok(regions)
            }
        }
    }
}

impl Read for StoredFile {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match self {
            StoredFile::File(file) => file.read(to),
            StoredFile::Image(file) => file.read(to),
        }
    }
}

impl Seek for StoredFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match self {
            StoredFile::File(file) => file.seek(to),
            StoredFile::Image(file) => file.seek(to),
        }
    }
}
