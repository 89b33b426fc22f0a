//! The size limit of a volume. Bytes are reserved before they are written, so `du` never shows more than the
//! cap. If the file system itself is no larger than the cap, the kernel enforces it: bytes are still counted,
//! but only the kernel refuses them.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::error::Error;
use larder_model::io_error::Context as _;
use larder_model::shortage::{Shortage, Unit};
use larder_sys::Dir;
use larder_sys::space::{self, FileSystem};

/// One new name can cost a directory a leaf block, two index blocks and a converted root.
const GROWTH_BLOCKS: u64 = 4;

/// Number of blocks that can still be free when the kernel refuses one.
const MARGIN_BLOCKS: u64 = 64;

/// Reciprocal of the share of the cap kept back for blocks that a file system adds at write-back, such as
/// index blocks of a fragmented file.
const SLACK_SHARE: u64 = 512;

/// Accounting of the space of a volume.
#[derive(Debug)]
pub struct Budget {
    cap: u64,
    limit: u64,
    used: AtomicU64,
    file_system: FileSystem,
    /// A directory of the file system, if that is the cap.
    held: Option<Dir>,
    /// The first shortage. Layers that fail later may find space again that the first failed layer has
    /// released.
    first: OnceLock<Shortage>,
}

impl Budget {
    /// Creates an account of `cap` bytes, of which `used` are already occupied.
    pub fn new(cap: u64, used: u64, file_system: FileSystem) -> Self {
        let limit = cap - cap / SLACK_SHARE;
        Budget { cap, limit, used: AtomicU64::new(used), file_system, held: None, first: OnceLock::new() }
    }

    /// Creates an account for a cap that is the file system of `root`.
    pub fn held_by_kernel(cap: u64, used: u64, file_system: FileSystem, root: Dir) -> Self {
        Budget {
            cap,
            limit: u64::MAX,
            used: AtomicU64::new(used),
            file_system,
            held: Some(root),
            first: OnceLock::new(),
        }
    }

    /// Reports whether the kernel enforces the cap.
    pub fn is_held_by_kernel(&self) -> bool {
        self.held.is_some()
    }

    /// Reports whether useless files should stay until the end. An ext4 without a journal skips recently
    /// freed inodes one by one (Linux, recently_deleted() in fs/ext4/ialloc.c). After 60,000 files were
    /// removed, creating as many took 292 s, but 4 s on a new mount. The space is not needed while half of
    /// the disk is free.
    pub(super) fn defers_deletions(&self) -> bool {
        let facts = self.held.as_ref().and_then(|root| space::usage(root).ok());
        facts.is_some_and(|facts| facts.free > facts.size / 2 && facts.free_inodes > facts.inodes / 2)
    }

    /// Returns the shortage that prevents the file system from taking another `need` bytes or one inode.
    /// `None` if there is enough, or if the file system is not the cap.
    pub fn exhausted(&self, need: u64) -> Option<Shortage> {
        let now = self.exhausted_now(need).inspect(|now| {
            self.first.get_or_init(|| *now);
        });
        now.or_else(|| self.first.get().copied())
    }

    fn exhausted_now(&self, need: u64) -> Option<Shortage> {
        let facts = space::usage(self.held.as_ref()?).ok()?;
        if facts.free_inodes == 0 && facts.inodes > 0 {
            return Some(Shortage { unit: Unit::Inodes, need: 1, have: 0, cap: facts.inodes });
        }
        let need = need.max(self.file_system.block);
        // The kernel refuses a write before the last block is used. Other writers reserve blocks for
        // unwritten data and for the indexes of their files, and later release some of them.
        let close = facts.free < need + (self.cap / SLACK_SHARE).max(MARGIN_BLOCKS * self.file_system.block);
        close.then(|| Shortage::bytes(need, facts.free, self.cap))
    }

    /// Replaces an I/O error with [`Error::Full`] if the file system was full.
    pub(super) fn explained(&self, error: impl Into<Error>) -> Error {
        let error = match error.into() {
            Error::Io(error) => error,
            other => return other,
        };
        let full = matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
        match full.then(|| self.exhausted(0)).flatten() {
            Some(shortage) => Error::Full { doing: format!("{} {}", error.doing, error.object), shortage },
            None => Error::Io(error),
        }
    }

    /// Returns the bytes that are reserved or occupied.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Returns the cap in bytes.
    pub fn cap(&self) -> u64 {
        self.cap
    }

    /// Returns the properties of the file system that affect accounting.
    pub fn file_system(&self) -> FileSystem {
        self.file_system
    }

    /// Reserves `bytes` of the volume.
    ///
    /// # Errors
    /// [`Shortage`] if the cap would be exceeded.
    pub fn reserve(&self, bytes: u64) -> Result<(), Shortage> {
        let take = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => Ok(()),
            Err(used) => Err(Shortage::bytes(bytes, self.limit.saturating_sub(used), self.cap)),
        }
    }

    /// Releases `bytes` of the volume.
    pub fn release(&self, bytes: u64) {
        let give = |used: u64| Some(used.saturating_sub(bytes));
        // The closure always returns a value.
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, give);
    }

    /// Reserves whole blocks for one of Larder's own files of `bytes`.
    pub(super) fn reserve_file(&self, bytes: u64, what: &str) -> Result<u64, Error> {
        let room = self.file_system.round_up(bytes);
        self.reserve(room).map_err(|shortage| full(shortage, what))?;
        Ok(room)
    }

    /// Runs `work`, which adds at most one name to each of `dirs`, with space reserved for their growth.
    pub(super) fn with_growth<T>(
        &self,
        dirs: &[&Dir],
        what: &str,
        work: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let room = GROWTH_BLOCKS * self.file_system.block * dirs.len() as u64;
        self.reserve(room).map_err(|shortage| full(shortage, what))?;
        let before = allocated(dirs)?;
        let result = work();
        let grown = allocated(dirs)?.saturating_sub(before).min(room);
        self.release(room - grown);
        result.map_err(|error| self.explained(error))
    }
}

fn allocated(dirs: &[&Dir]) -> Result<u64, Error> {
    let mut sum = 0;
    for dir in dirs {
        sum += dir.stat_self().context("examining", "a directory of the volume")?.allocated;
    }
    Ok(sum)
}

pub(super) fn full(shortage: Shortage, what: &str) -> Error {
    Error::Full { doing: format!("writing {what}"), shortage }
}

/// Bytes reserved for one layer. They are released if the layer fails, and kept if it is committed.
#[derive(Debug)]
pub struct Account {
    budget: Arc<Budget>,
    held: AtomicU64,
    /// Size of the last reservation, in bytes.
    last: AtomicU64,
}

impl Account {
    /// Creates an account without reservations.
    pub fn new(budget: Arc<Budget>) -> Self {
        Account { budget, held: AtomicU64::new(0), last: AtomicU64::new(0) }
    }

    /// Reserves `bytes` for the layer.
    ///
    /// # Errors
    /// [`Shortage`] if the cap would be exceeded.
    pub fn reserve(&self, bytes: u64) -> Result<(), Shortage> {
        self.last.store(bytes, Ordering::Relaxed);
        self.budget.reserve(bytes)?;
        self.held.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Releases `bytes` of the layer.
    pub fn release(&self, bytes: u64) {
        let held = self
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| Some(held.saturating_sub(bytes)));
        let held = held.unwrap_or_default();
        self.budget.release(bytes.min(held));
    }

    /// Returns the shortage of the file system after it refused the last reservation.
    pub fn exhausted(&self) -> Option<Shortage> {
        self.budget.exhausted(self.last.load(Ordering::Relaxed))
    }

    /// Returns the account of the volume.
    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Returns the allocation unit of files, in bytes.
    pub fn block(&self) -> u64 {
        self.budget.file_system.block
    }

    /// Keeps the reserved bytes permanently on the volume.
    pub fn keep(&self) {
        self.held.store(0, Ordering::Relaxed);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.budget.release(self.held.load(Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(cap: u64) -> Arc<Budget> {
        Arc::new(Budget::new(cap, 0, FileSystem { block: 4096, is_xfs: false }))
    }

    #[test]
    fn the_exact_edge() {
        let budget = budget(512 * 100);
        let limit = 512 * 100 - 100;
        assert!(budget.reserve(limit).is_ok());
        assert_eq!(budget.reserve(1), Err(Shortage::bytes(1, 0, 51200)));
        budget.release(1);
        assert!(budget.reserve(1).is_ok());
        assert!(budget.reserve(u64::MAX).is_err());
    }

    #[test]
    fn a_failed_layer_releases_its_bytes() {
        let budget = budget(1 << 20);
        let account = Account::new(Arc::clone(&budget));
        account.reserve(5000).unwrap();
        account.release(1000);
        assert_eq!(budget.used(), 4000);
        drop(account);
        assert_eq!(budget.used(), 0);

        let account = Account::new(Arc::clone(&budget));
        account.reserve(700).unwrap();
        account.keep();
        drop(account);
        assert_eq!(budget.used(), 700);
    }
}
