//! Extended attributes (xattr(7)).

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{self, XattrFlags};

use super::dir::Dir;

/// Most bytes that Linux lets one value (or one list of names) have (`XATTR_SIZE_MAX`).
const MAX: usize = 65536;

/// Sets an attribute of an open inode.
pub fn set(fd: impl AsFd, name: &[u8], value: &[u8]) -> io::Result<()> {
    Ok(fs::fsetxattr(fd, name, value, XattrFlags::empty())?)
}

/// Sets an attribute of `name` in `dir`, which is not followed.
pub fn set_at(dir: &Dir, entry: &[u8], name: &[u8], value: &[u8]) -> io::Result<()> {
    Ok(fs::lsetxattr(dir.proc_path(entry), name, value, XattrFlags::empty())?)
}

/// Removes an attribute of an open inode; one that is not there is no error.
pub fn remove(fd: impl AsFd, name: &[u8]) -> io::Result<()> {
    match fs::fremovexattr(fd, name) {
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOTSUP) => Ok(()),
        other => Ok(other?),
    }
}

/// The value of an attribute of an open inode, or nothing where it has none of that name.
pub fn get(fd: impl AsFd, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    value(|buffer| fs::fgetxattr(&fd, name, buffer))
}

/// All attributes of an open inode, sorted by name.
pub fn all(fd: impl AsFd) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let fd = fd.as_fd();
    let names = value(|buffer| fs::flistxattr(fd, buffer))?;
    collect(names, |name| get(fd, name))
}

/// All attributes of `entry` in `dir`, which is not followed, sorted by name.
pub fn all_at(dir: &Dir, entry: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let path = dir.proc_path(entry);
    let names = value(|buffer| fs::llistxattr(&path, buffer))?;
    collect(names, |name| value(|buffer| fs::lgetxattr(&path, name, buffer)))
}

type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

fn collect(
    names: Option<Vec<u8>>,
    get: impl Fn(&[u8]) -> io::Result<Option<Vec<u8>>>,
) -> io::Result<Attributes> {
    let names = names.unwrap_or_default();
    let mut attributes = Vec::new();
    for name in names.split(|b| *b == 0).filter(|name| !name.is_empty()) {
        if let Some(value) = get(name)? {
            attributes.push((name.to_vec(), value));
        }
    }
    attributes.sort();
    Ok(attributes)
}

/// Calls with a small buffer first: most inodes have no attribute, and most values are short.
fn value(call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> io::Result<Option<Vec<u8>>> {
    use rustix::io::Errno;
    let mut small = [0u8; 256];
    match call(&mut small) {
        Ok(len) => return Ok(Some(small[..len].to_vec())),
        Err(Errno::NODATA | Errno::NOTSUP) => return Ok(None),
        Err(Errno::RANGE) => {}
        Err(e) => return Err(e.into()),
    }
    let mut large = vec![0u8; MAX];
    match call(&mut large) {
        Ok(len) => {
            large.truncate(len);
            Ok(Some(large))
        }
        Err(Errno::NODATA) => Ok(None),
        Err(e) => Err(e.into()),
    }
}
