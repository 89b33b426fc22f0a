//! Reader of images that anybody may have written: everything is checked before it is believed, nothing is read twice as
//! much as the image is long, and what this larder never writes is refused.
//!
//! An image can say that a directory is in itself, or in many others: whoever walks one of an enemy bounds his steps.
//!
//! What is read agrees with what the kernel shows of the same image; an image that is out of order in a way that the
//! kernel would not notice is an error here.

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

/// An image.
#[derive(Debug)]
struct Image {
    cache: Cache,
    /// Where node number 0 is, bytes.
    metadata: u64,
    /// Where the shared attributes begin, bytes.
    shared: u64,
    epoch: Timestamp,
}

/// An inode of an image, with the image.
#[derive(Clone, Debug)]
pub struct ImageNode {
    image: Arc<Image>,
    inode: Inode,
}

impl ImageNode {
    /// Opens an image, and answers its root directory.
    ///
    /// # Errors
    /// Those of reading; [`io::ErrorKind::InvalidData`] where it is no image of the kind that this larder writes.
    pub fn root(file: File) -> io::Result<Self> {
        let mut cache = Cache::new(file)?;
        let mut head = [0; BLOCK];
        cache.read(0, &mut head)?;
        let facts = verify_superblock(&head).ok_or_else(|| corrupt("its superblock"))?;
        // A hash tree may follow.
        if !cache.cut(u64::from(facts.blocks) * BLOCK as u64) {
            return Err(corrupt("its length"));
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
            return Err(corrupt("its root"));
        }
        Ok(root)
    }

    fn at(image: &Arc<Image>, number: u64) -> io::Result<Self> {
        let at = number.checked_mul(SLOT as u64).and_then(|at| at.checked_add(image.metadata));
        let at = at.filter(|at| *at >= FIRST_FREE as u64).ok_or_else(|| corrupt("a node number"))?;
        let inode = Inode::read(image, number, at)?;
        Ok(ImageNode { image: Arc::clone(image), inode })
    }

    /// Type of the inode.
    pub fn file_type(&self) -> FileType {
        self.inode.file_type
    }

    /// Its attributes. As device it has 0.
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
            // An image has none.
            ctime: inode.mtime,
        }
    }

    /// The text of a symbolic link.
    ///
    /// # Errors
    /// Those of reading; `EINVAL` where it is none.
    pub fn target(&self) -> io::Result<Vec<u8>> {
        if self.file_type() != FileType::Symlink {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let len = usize::try_from(self.inode.size).ok().filter(|len| (1..BLOCK).contains(len));
        let mut target = vec![0; len.ok_or_else(|| corrupt("the length of a symbolic link"))?];
        self.inode.read_at(&self.image, 0, &mut target)?;
        if target.contains(&0) {
            return Err(corrupt("the text of a symbolic link"));
        }
        Ok(target)
    }

    /// The content of a regular file.
    ///
    /// # Errors
    /// `EINVAL` where it is none.
    pub fn content(&self) -> io::Result<ImageFile> {
        match self.file_type() {
            FileType::Regular => Ok(ImageFile::new(self.clone())),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Where the data of a regular file lies, between holes.
    ///
    /// # Errors
    /// Those of reading.
    pub fn regions(&self) -> io::Result<Vec<Region>> {
        self.inode.regions(&self.image)
    }

    /// Its extended attributes, sorted by name.
    ///
    /// # Errors
    /// Those of reading.
    pub fn xattrs(&self) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        xattrs::read(&self.image, &self.inode)
    }

    /// The names in a directory, in order.
    ///
    /// # Errors
    /// Those of reading; `ENOTDIR` where it is none.
    pub fn names(&self) -> io::Result<Vec<Vec<u8>>> {
        directory::names(&self.image, &self.inode)
    }

    /// What has a name in a directory.
    ///
    /// # Errors
    /// Those of reading; `ENOTDIR` where it is none.
    pub fn lookup(&self, name: &[u8]) -> io::Result<Option<Self>> {
        match directory::find(&self.image, &self.inode, name)? {
            None => Ok(None),
            Some((number, file_type)) => {
                let node = ImageNode::at(&self.image, number)?;
                match node.file_type() == file_type {
                    true => Ok(Some(node)),
                    false => Err(corrupt("the type of an entry")),
                }
            }
        }
    }
}

/// An image that is not as it should be.
fn corrupt(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the EROFS image is damaged: {what}"))
}

const _: () = assert!(SUPERBLOCK < FIRST_FREE);
