//! Extended attributes (xattr(7)).

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{self, XattrFlags};

use super::dir::Dir;

/// Maximum length of one value, or of one list of names, in bytes (`XATTR_SIZE_MAX`).
const MAX_LEN: usize = 65536;

/// Sets an attribute of an open inode.
///
/// # Errors
/// Those of fsetxattr(2).
pub fn set(fd: impl AsFd, name: &[u8], value: &[u8]) -> io::Result<()> {
    Ok(fs::fsetxattr(fd, name, value, XattrFlags::empty())?)
}

/// Sets an attribute of `entry` in `dir`, without following a symbolic link.
///
/// # Errors
/// Those of lsetxattr(2).
pub fn set_at(dir: &Dir, entry: &[u8], name: &[u8], value: &[u8]) -> io::Result<()> {
    Ok(fs::lsetxattr(dir.proc_path(entry), name, value, XattrFlags::empty())?)
}

/// Removes an attribute of an open inode. A missing attribute is not an error.
///
/// # Errors
/// Those of fremovexattr(2).
pub fn remove(fd: impl AsFd, name: &[u8]) -> io::Result<()> {
    match fs::fremovexattr(fd, name) {
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOTSUP) => Ok(()),
        other => Ok(other?),
    }
}

/// Returns the value of an attribute of an open inode; `None` if it has no attribute of that name.
///
/// # Errors
/// Those of fgetxattr(2).
pub fn get(fd: impl AsFd, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    value(|buffer| fs::fgetxattr(&fd, name, buffer))
}

/// Returns all attributes of an open inode, sorted by name.
///
/// # Errors
/// Those of flistxattr(2) and fgetxattr(2).
pub fn all(fd: impl AsFd) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let fd = fd.as_fd();
    let names = value(|buffer| fs::flistxattr(fd, buffer))?;
    collect(names, |name| get(fd, name))
}

/// Returns all attributes of `entry` in `dir`, sorted by name, without following a symbolic link.
///
/// # Errors
/// Those of llistxattr(2) and lgetxattr(2).
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

/// Calls with a small buffer first, because most inodes have no attributes and most values are short.
fn value(call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> io::Result<Option<Vec<u8>>> {
    use rustix::io::Errno;
    let mut small = [0u8; 256];
    match call(&mut small) {
        Ok(len) => return Ok(Some(small[..len].to_vec())),
        Err(Errno::NODATA | Errno::NOTSUP) => return Ok(None),
        Err(Errno::RANGE) => {}
        Err(e) => return Err(e.into()),
    }
    let mut large = vec![0u8; MAX_LEN];
    match call(&mut large) {
        Ok(len) => {
            large.truncate(len);
            Ok(Some(large))
        }
        Err(Errno::NODATA) => Ok(None),
        Err(e) => Err(e.into()),
    }
}
