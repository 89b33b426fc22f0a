//! A reader of untrusted images. It checks all data before using it, and rejects formats that Larder never
//! writes. The work of each call is limited by the length of the image.
//!
//! A hostile image can claim that a directory contains itself or is in many others. A caller that walks a
//! tree must therefore limit its steps.
//!
//! The results are the same as those of the kernel for the same image. An inconsistency that the kernel would
//! not notice is an error here.

mod cache;
mod directory;
mod file;
mod inode;
mod xattrs;

use std::fs::File;
use std::io;
use std::sync::Arc;

pub use self::file::ImageFile;

use self::cache::Cache;
use self::inode::Inode;
use super::format::{BLOCK, FIRST_FREE, SLOT, SUPERBLOCK, verify_superblock};
use crate::tar::Region;
use larder_sys::{FileType, Stat, Timestamp};

/// An open image.
#[derive(Debug)]
struct Image {
    cache: Cache,
    /// Offset of node number 0, bytes.
    metadata: u64,
    /// Offset of the shared attributes, bytes.
    shared: u64,
    epoch: Timestamp,
}

/// An inode of an image, with a handle of the image.
#[derive(Clone, Debug)]
pub struct ImageNode {
    image: Arc<Image>,
    inode: Inode,
}

impl ImageNode {
    /// Opens an image and returns its root directory.
    ///
    /// # Errors
    /// Errors of reading; [`io::ErrorKind::InvalidData`] if it is not an image of the format that Larder
    /// writes.
    pub fn root(file: File) -> io::Result<Self> {
        let mut cache = Cache::new(file)?;
        let mut head = [0; BLOCK];
        cache.read(0, &mut head)?;
        let facts = verify_superblock(&head).ok_or_else(|| corrupt("its superblock is invalid"))?;
        // A hash tree may follow.
        if !cache.cut(u64::from(facts.blocks) * BLOCK as u64) {
            return Err(corrupt("its length is wrong"));
        }
        let start = |block: u32| u64::from(block) * BLOCK as u64;
        let image = Arc::new(Image {
            cache,
            metadata: start(facts.metadata),
            shared: start(facts.shared),
            epoch: facts.epoch,
        });
        let root = ImageNode::at(&image, facts.root.into())?;
        if root.file_type() != FileType::Directory {
            return Err(corrupt("its root is not a directory"));
        }
        Ok(root)
    }

    fn at(image: &Arc<Image>, number: u64) -> io::Result<Self> {
        let at = number.checked_mul(SLOT as u64).and_then(|at| at.checked_add(image.metadata));
        let at = at
            .filter(|at| *at >= FIRST_FREE as u64)
            .ok_or_else(|| corrupt("a node number is out of range"))?;
        let inode = Inode::read(image, number, at)?;
        Ok(ImageNode { image: Arc::clone(image), inode })
    }

    /// Returns the type of the inode.
    pub fn file_type(&self) -> FileType {
        self.inode.file_type
    }

    /// Returns the file attributes of the inode. The device ID of its file system is 0.
    pub fn stat(&self) -> Stat {
        let inode = &self.inode;
        Stat {
            file_type: inode.file_type,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            size: inode.size,
            allocated: inode.size.next_multiple_of(512),
            links: inode.links.into(),
            identity: (0, inode.number),
            device: inode.device(),
            mtime: inode.mtime,
            // An image stores no change time.
            ctime: inode.mtime,
        }
    }

    /// Returns the target of a symbolic link.
    ///
    /// # Errors
    /// Errors of reading; `EINVAL` if the inode is not a symbolic link.
    pub fn target(&self) -> io::Result<Vec<u8>> {
        if self.file_type() != FileType::Symlink {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let len = usize::try_from(self.inode.size).ok().filter(|len| (1..BLOCK).contains(len));
        let mut target = vec![0; len.ok_or_else(|| corrupt("the length of a symbolic link is invalid"))?];
        self.inode.read_at(&self.image, 0, &mut target)?;
        if target.contains(&0) {
            return Err(corrupt("the target of a symbolic link contains a NUL byte"));
        }
        Ok(target)
    }

    /// Returns the content of a regular file.
    ///
    /// # Errors
    /// `EINVAL` if the inode is not a regular file.
    pub fn content(&self) -> io::Result<ImageFile> {
        match self.file_type() {
            FileType::Regular => Ok(ImageFile::new(self.clone())),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Returns the regions of a regular file that contain data.
    ///
    /// # Errors
    /// Errors of reading the image.
    pub fn regions(&self) -> io::Result<Vec<Region>> {
        self.inode.regions(&self.image)
    }

    /// Returns the extended attributes of the inode, sorted by name.
    ///
    /// # Errors
    /// Errors of reading the image.
    pub fn xattrs(&self) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        xattrs::read(&self.image, &self.inode)
    }

    /// Returns the names in a directory, in order.
    ///
    /// # Errors
    /// Errors of reading; `ENOTDIR` if the inode is not a directory.
    pub fn names(&self) -> io::Result<Vec<Vec<u8>>> {
        directory::names(&self.image, &self.inode)
    }

    /// Returns the entry `name` of a directory; `None` if there is none.
    ///
    /// # Errors
    /// Errors of reading; `ENOTDIR` if the inode is not a directory.
    pub fn lookup(&self, name: &[u8]) -> io::Result<Option<Self>> {
        match directory::find(&self.image, &self.inode, name)? {
            None => Ok(None),
            Some((number, file_type)) => {
                let node = ImageNode::at(&self.image, number)?;
                match node.file_type() == file_type {
                    true => Ok(Some(node)),
                    false => Err(corrupt("the type of a directory entry is wrong")),
                }
            }
        }
    }
}

/// Creates an error for a damaged image.
fn corrupt(fault: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the EROFS image is damaged: {fault}"))
}

const _: () = assert!(SUPERBLOCK < FIRST_FREE);
