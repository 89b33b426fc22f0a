//! Tar headers of the written archives: POSIX ustar, with no modification time.

/// Size of a block, bytes.
pub(super) const BLOCK: usize = 512;

/// End of a tar: two blocks of zeros.
pub(super) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// Type of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
}

/// Fields of a header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member<'a> {
    /// Name of at most 100 bytes.
    pub(super) name: &'a str,
    pub(super) kind: Kind,
    /// Permission bits of the mode.
    pub(super) mode: u32,
    /// Numeric user and group.
    pub(super) owner: u32,
    /// Size of the content, bytes.
    pub(super) size: u64,
}

/// Returns the header of a file or directory of root. `name` has at most 100 bytes.
pub(super) fn header(name: &str, kind: Kind, size: u64) -> [u8; BLOCK] {
    let mode = match kind {
        Kind::File => 0o644,
        Kind::Directory => 0o755,
    };
    Member { name, kind, mode, owner: 0, size }.header()
}

impl Member<'_> {
    pub(super) fn header(&self) -> [u8; BLOCK] {
        let Member { name, kind, mode, owner, size } = *self;
        let mut block = [0; BLOCK];
        let flag = match kind {
            Kind::File => b'0',
            Kind::Directory => b'5',
        };
        debug_assert!(name.len() <= 100);
        put(&mut block, 0, &name.as_bytes()[..name.len().min(100)]);
        put(&mut block, 100, format!("{mode:07o}\0").as_bytes());
        put(&mut block, 108, format!("{owner:07o}\0").as_bytes());
        put(&mut block, 116, format!("{owner:07o}\0").as_bytes());
        block[156] = flag;
        // Eleven octal digits represent up to 8 GiB. Above that, GNU's base-256 is used, which all readers
        // support.
        if size < 1 << 33 {
            put(&mut block, 124, format!("{size:011o}\0").as_bytes());
            put(&mut block, 257, b"ustar\x0000");
        } else {
            block[124] = 0x80;
            put(&mut block, 128, &size.to_be_bytes());
            put(&mut block, 257, b"ustar  \0");
        }
        put(&mut block, 136, b"00000000000\0");
        put(&mut block, 148, b"        ");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        put(&mut block, 148, format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

/// Returns the number of bytes from the end of `size` bytes to the next block.
pub(super) fn padding(size: u64) -> usize {
    usize::try_from(size.wrapping_neg() % BLOCK as u64).unwrap_or(0)
}

fn put(block: &mut [u8; BLOCK], at: usize, bytes: &[u8]) {
    block[at..at + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tar_crate_reads_the_headers() {
        let name = format!("blobs/sha256/{}", "a".repeat(64));
        for size in [0, 1, 511, 512, (1 << 33) - 1, 1 << 33, 1 << 40] {
            let block = header(&name, Kind::File, size);
            let read = ::tar::Header::from_byte_slice(&block);
            assert_eq!(read.path().unwrap().to_str().unwrap(), name);
            assert_eq!(read.entry_size().unwrap(), size);
            assert_eq!((read.mode().unwrap(), read.uid().unwrap(), read.mtime().unwrap()), (0o644, 0, 0));
            let mut summed = read.clone();
            summed.set_cksum();
            assert_eq!(summed.cksum().unwrap(), read.cksum().unwrap());
            assert_eq!((size + padding(size) as u64) % 512, 0);
        }
        let block = header("blobs/", Kind::Directory, 0);
        assert!(::tar::Header::from_byte_slice(&block).entry_type().is_dir());
    }
}
