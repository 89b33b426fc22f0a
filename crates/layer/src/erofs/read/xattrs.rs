//! Reads the extended attributes of an inode.

use std::io;

use super::super::format::{Get, XATTR_ENTRY, XATTR_HEAD, XATTR_UNIT, decode_entry, entry_lengths};
use super::inode::Inode;
use super::{Image, corrupt};

type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

pub(super) fn read(image: &Image, inode: &Inode) -> io::Result<Attributes> {
    let (at, len) = inode.xattrs;
    if len == 0 {
        return Ok(Vec::new());
    }
    let mut body = vec![0; len];
    image.cache.read(at, &mut body)?;
    let count = usize::from(body[4]);
    let fault = || corrupt("the attributes of an inode are malformed");
    let inline = XATTR_HEAD + count * XATTR_UNIT;
    if inline > len {
        return Err(fault());
    }
    let mut attributes = Vec::new();
    for number in 0..count {
        let unit = Get(&body).u32(XATTR_HEAD + number * XATTR_UNIT);
        attributes.push(shared(image, image.shared + u64::from(unit) * XATTR_UNIT as u64)?);
    }
    let mut rest = &body[inline..];
    while !rest.is_empty() {
        // `rest` has at least four bytes for the header, because its length is a multiple of four.
        let (name, value) = entry_lengths(rest);
        let taken = (XATTR_ENTRY + name + value).next_multiple_of(XATTR_UNIT);
        let (entry, after) = rest.split_at_checked(taken).ok_or_else(fault)?;
        attributes.push(decode_entry(entry).ok_or_else(fault)?);
        rest = after;
    }
    attributes.sort();
    if attributes.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return Err(fault());
    }
    Ok(attributes)
}

fn shared(image: &Image, at: u64) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let mut head = [0; XATTR_ENTRY];
    image.cache.read(at, &mut head)?;
    let (name, value) = entry_lengths(&head);
    let mut entry = vec![0; XATTR_ENTRY + name + value];
    image.cache.read(at, &mut entry)?;
    decode_entry(&entry).ok_or_else(|| corrupt("a shared attribute is malformed"))
}
