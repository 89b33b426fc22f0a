//! Extended attributes. Each distinct one is stored once, outside of memory, until it is known how many
//! inodes use it.
//!
//! An attribute goes to the shared area if several inodes have it, if it is large, or if it does not fit next
//! to its inode. All others are stored after their inode.

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::blocks::Blocks;
use super::error::Error;
use super::format::{
    MAX_SHARED, NAME_MAX, Put, XATTR_ENTRY, XATTR_HEAD, XATTR_UNIT, decode_entry, split_name,
};
use super::spill::Spill;
use larder_sys::Dir;

/// Length above which an attribute is shared even if only one inode has it, bytes. This keeps inodes small.
const LARGE: u32 = 1024;

type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// Memory for one distinct attribute, bytes.
const PAIR: usize = 96;

/// Memory for one distinct set of attributes, without its members, bytes.
const SET: usize = 96;

/// The ID of the set of attributes of an inode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SetId(u32);

/// All attributes of an image.
#[derive(Debug)]
pub(super) struct Xattrs<'a> {
    spill: Spill<'a>,
    pairs: Vec<Pair>,
    /// Attributes by half of their SHA-256, which is long enough to rule out collisions.
    by_digest: HashMap<[u8; 16], u32>,
    sets: Vec<Arc<[u32]>>,
    by_set: HashMap<Arc<[u32]>, SetId>,
    shared: Shared,
}

/// An attribute in its on-disk form, in the spill.
#[derive(Clone, Copy, Debug)]
struct Pair {
    at: u64,
    len: u32,
    /// Number of inodes that have it, counted when the image is finished.
    uses: u32,
    /// Offset in the shared area, in units.
    shared: Option<u32>,
}

#[derive(Debug, Default)]
struct Shared {
    order: Vec<u32>,
    len: u64,
}

impl<'a> Xattrs<'a> {
    pub(super) fn new(dir: &Dir, space: &'a dyn super::super::space::Space) -> Result<Self, Error> {
        let empty: Arc<[u32]> = Arc::new([]);
        Ok(Xattrs {
            spill: Spill::new(dir, b"erofs-xattrs", space)?,
            pairs: Vec::new(),
            by_digest: HashMap::new(),
            sets: vec![Arc::clone(&empty)],
            by_set: HashMap::from([(empty, SetId::default())]),
            shared: Shared::default(),
        })
    }

    /// Stores attributes; returns the ID of their set and the memory that this took in bytes.
    pub(super) fn intern(&mut self, xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<(SetId, usize), Error> {
        if xattrs.is_empty() {
            return Ok((SetId::default(), 0));
        }
        if xattrs.len() > MAX_SHARED {
            return Err(Error::TooManyXattrs { count: xattrs.len() });
        }
        let mut sorted: Vec<&(Vec<u8>, Vec<u8>)> = xattrs.iter().collect();
        sorted.sort();
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(Error::XattrTwice { name: twice[0].0.clone() });
        }
        let known = self.pairs.len();
        let set = sorted
            .into_iter()
            .map(|(name, value)| self.pair(name, value))
            .collect::<Result<Arc<[u32]>, _>>()?;
        let grown = (self.pairs.len() - known) * PAIR;
        if let Some(id) = self.by_set.get(&set) {
            return Ok((*id, grown));
        }
        let id = SetId(u32::try_from(self.sets.len()).map_err(|_| Error::TooManyEntries)?);
        let grown = grown + SET + set.len() * 4;
        self.sets.push(Arc::clone(&set));
        self.by_set.insert(set, id);
        Ok((id, grown))
    }

    fn pair(&mut self, name: &[u8], value: &[u8]) -> Result<u32, Error> {
        let entry = encode(name, value)?;
        let mut digest = [0; 16];
        digest.copy_from_slice(&Sha256::digest(&entry)[..16]);
        if let Some(known) = self.by_digest.get(&digest) {
            return Ok(*known);
        }
        let id = u32::try_from(self.pairs.len()).map_err(|_| Error::TooManyEntries)?;
        let len = u32::try_from(entry.len()).map_err(|_| Error::XattrTooLong { name: name.to_vec() })?;
        let at = self.spill.append(&entry)?;
        self.pairs.push(Pair { at, len, uses: 0, shared: None });
        self.by_digest.insert(digest, id);
        Ok(id)
    }

    /// Returns the attributes of a set, sorted by name.
    pub(super) fn get(&mut self, set: SetId) -> Result<Attributes, Error> {
        let set = Arc::clone(&self.sets[set.0 as usize]);
        let mut attributes = Vec::with_capacity(set.len());
        for id in set.iter() {
            let Pair { at, len, .. } = self.pairs[*id as usize];
            let mut entry = Vec::new();
            self.spill.read(at, len as usize, &mut entry)?;
            attributes.push(decode_entry(&entry).ok_or(Error::Fault("an attribute cannot be read back"))?);
        }
        Ok(attributes)
    }

    /// Counts an inode with this set.
    pub(super) fn count(&mut self, set: SetId) {
        for pair in self.sets[set.0 as usize].iter() {
            let pair = &mut self.pairs[*pair as usize];
            pair.uses = pair.uses.saturating_add(1);
        }
    }

    /// Decides where to store the attributes of an inode with `room` bytes left for them. All inodes must be
    /// counted before.
    pub(super) fn decide_sharing(&mut self, set: SetId, room: usize) -> Result<(), Error> {
        let set = Arc::clone(&self.sets[set.0 as usize]);
        for id in set.iter() {
            let pair = &self.pairs[*id as usize];
            if pair.uses > 1 || pair.len > LARGE {
                self.share(*id)?;
            }
        }
        if self.body_len(&set) > room {
            for id in set.iter() {
                self.share(*id)?;
            }
        }
        Ok(())
    }

    fn share(&mut self, id: u32) -> Result<(), Error> {
        let pair = &mut self.pairs[id as usize];
        if pair.shared.is_none() {
            let unit = self.shared.len / XATTR_UNIT as u64;
            pair.shared = Some(u32::try_from(unit).map_err(|_| Error::TooMuchMetadata)?);
            self.shared.len += u64::from(pair.len);
            self.shared.order.push(id);
        }
        Ok(())
    }

    /// Returns the length of the attributes after an inode with this set, bytes.
    pub(super) fn len(&self, set: SetId) -> usize {
        self.body_len(&self.sets[set.0 as usize])
    }

    fn body_len(&self, set: &[u32]) -> usize {
        let each = set.iter().map(|id| match self.pairs[*id as usize] {
            Pair { shared: Some(_), .. } => XATTR_UNIT,
            Pair { len, .. } => len as usize,
        });
        if set.is_empty() { 0 } else { XATTR_HEAD + each.sum::<usize>() }
    }

    /// Appends the attributes that follow an inode with this set.
    pub(super) fn write(&mut self, set: SetId, to: &mut Vec<u8>) -> Result<(), Error> {
        let set = Arc::clone(&self.sets[set.0 as usize]);
        if set.is_empty() {
            return Ok(());
        }
        let head = to.len();
        to.resize(head + XATTR_HEAD, 0);
        for id in set.iter() {
            if let Some(unit) = self.pairs[*id as usize].shared {
                to.extend_from_slice(&unit.to_le_bytes());
                // At most 255, because sets have no more members.
                to[head + 4] += 1;
            }
        }
        for id in set.iter() {
            let Pair { at, len, shared, .. } = self.pairs[*id as usize];
            if shared.is_none() {
                self.spill.read(at, len as usize, to)?;
            }
        }
        Ok(())
    }

    /// Returns the size of the shared area, bytes.
    pub(super) fn shared_len(&self) -> u64 {
        self.shared.len
    }

    /// Writes the shared area.
    pub(super) fn write_shared(&mut self, blocks: &mut Blocks<'_>) -> Result<(), Error> {
        let mut entry = Vec::new();
        for id in &self.shared.order {
            let Pair { at, len, .. } = self.pairs[*id as usize];
            entry.clear();
            self.spill.read(at, len as usize, &mut entry)?;
            blocks.push(&entry)?;
        }
        blocks.close()
    }
}

/// Encodes an attribute in its on-disk form.
fn encode(name: &[u8], value: &[u8]) -> Result<Vec<u8>, Error> {
    if name.len() > NAME_MAX || value.len() > usize::from(u16::MAX) {
        return Err(Error::XattrTooLong { name: name.to_vec() });
    }
    let (index, rest) = split_name(name).ok_or_else(|| Error::XattrName { name: name.to_vec() })?;
    let mut entry = vec![0; (XATTR_ENTRY + rest.len() + value.len()).next_multiple_of(XATTR_UNIT)];
    let mut put = Put(&mut entry);
    put.u8(0, rest.len().to_le_bytes()[0]);
    put.u8(1, index);
    put.low_u16(2, value.len() as u64);
    put.bytes(XATTR_ENTRY, rest);
    put.bytes(XATTR_ENTRY + rest.len(), value);
    Ok(entry)
}
