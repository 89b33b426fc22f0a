//! The fields of an ELF file that the kernel and the dynamic loader use: its interpreter and the libraries
//! that it names.
//!
//! The file is untrusted. It is read by ranges of at most 256 KiB, never as a whole. A file that cannot
//! be read has no libraries.

use std::ops::Range;

use object::Endianness;
use object::elf::{
    DT_NEEDED, DT_NULL, DT_RPATH, DT_RUNPATH, DT_STRSZ, DT_STRTAB, FileHeader32, FileHeader64, PT_DYNAMIC,
    PT_INTERP, PT_LOAD,
};
use object::read::elf::{Dyn as _, FileHeader, ProgramHeader as _};
use object::read::{ReadCache, ReadCacheOps, ReadRef, StringTable};

/// Magic bytes of an ELF file.
pub(super) const MAGIC: &[u8] = b"\x7fELF";

/// Maximum size of one table, bytes; those that compilers write have a few KiB.
const MAX_RANGE: u64 = 256 << 10;

/// Maximum number of libraries that one file can name.
const MAX_NEEDED: usize = 512;

/// Properties that the loader compares before it accepts a library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// `true` for 64-bit addresses.
    pub wide: bool,
    /// `true` for little-endian.
    pub little: bool,
    /// The `e_machine` of the header.
    pub number: u16,
}

/// An ELF program or library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// The machine that it runs on.
    pub machine: Machine,
    /// Path of the dynamic loader; `None` for a static program or a library.
    pub interpreter: Option<Vec<u8>>,
    /// Names of libraries (`DT_NEEDED`).
    pub needed: Vec<Vec<u8>>,
    /// `DT_RPATH`: directories separated by colons.
    pub rpath: Option<Vec<u8>>,
    /// `DT_RUNPATH`: directories separated by colons.
    pub runpath: Option<Vec<u8>>,
}

impl Object {
    /// Reports whether it is a static program, which needs no loader and no libraries.
    pub fn is_static(&self) -> bool {
        self.interpreter.is_none() && self.needed.is_empty()
    }
}

/// Parses the file; `None` if it is not an ELF file.
pub fn read(file: impl ReadCacheOps) -> Option<Object> {
    let cache = ReadCache::new(file);
    let data = Ranges(&cache);
    let ident = data.read_bytes_at(0, 5).ok()?;
    match ident.strip_prefix(MAGIC)? {
        [1] => parse::<FileHeader32<Endianness>>(data),
        [2] => parse::<FileHeader64<Endianness>>(data),
        _ => None,
    }
}

fn parse<'a, Elf: FileHeader<Endian = Endianness>>(data: impl ReadRef<'a>) -> Option<Object> {
    let header = Elf::parse(data).ok()?;
    let endian = header.endian().ok()?;
    let segments = header.program_headers(endian, data).ok()?;
    let machine = Machine {
        wide: header.is_class_64(),
        little: header.is_little_endian(),
        number: header.e_machine(endian).0,
    };
    let mut object = Object { machine, interpreter: None, needed: Vec::new(), rpath: None, runpath: None };
    let first = |kind| segments.iter().find(|segment| segment.p_type(endian) == kind);
    if let Some(segment) = first(PT_INTERP) {
        object.interpreter = Some(segment.interpreter(endian, data).ok()??.to_vec());
    }
    let Some(dynamic) = first(PT_DYNAMIC) else { return Some(object) };
    let entries = dynamic.dynamic(endian, data).ok()??;
    let entries = || entries.iter().take_while(|entry| entry.tag(endian) != DT_NULL);
    let value = |tag| entries().find(|entry| entry.tag(endian) == tag).map(|entry| entry.val(endian));
    let (Some(address), Some(size)) = (value(DT_STRTAB), value(DT_STRSZ)) else { return Some(object) };
    let start = segments.iter().filter(|segment| segment.p_type(endian) == PT_LOAD).find_map(|segment| {
        let (offset, length) = segment.file_range(endian);
        let into = address.checked_sub(segment.p_vaddr(endian).into())?;
        (into < length).then(|| offset.checked_add(into))?
    })?;
    let end = start.checked_add(size)?.min(data.len().ok()?);
    let strings = StringTable::new(data, start, end);
    let string = |at: u64| Some(strings.get(u32::try_from(at).ok()?).ok()?.to_vec());
    let needed = entries().filter(|entry| entry.tag(endian) == DT_NEEDED).take(MAX_NEEDED);
    object.needed = needed.filter_map(|entry| string(entry.val(endian))).collect();
    object.rpath = value(DT_RPATH).and_then(string);
    object.runpath = value(DT_RUNPATH).and_then(string);
    Some(object)
}

/// A file from which no large range is read at a time.
struct Ranges<'a, R: ReadCacheOps>(&'a ReadCache<R>);

impl<R: ReadCacheOps> Clone for Ranges<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R: ReadCacheOps> Copy for Ranges<'_, R> {}

impl<'a, R: ReadCacheOps> ReadRef<'a> for Ranges<'a, R> {
    fn len(self) -> Result<u64, ()> {
        self.0.len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'a [u8], ()> {
        if size > MAX_RANGE { Err(()) } else { self.0.read_bytes_at(offset, size) }
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'a [u8], ()> {
        self.0.read_bytes_at_until(range, delimiter)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn of(bytes: &[u8]) -> Option<Object> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        read(file)
    }

    #[test]
    fn reads_the_test_program() {
        let program = std::env::current_exe().unwrap();
        let object = read(File::open(&program).unwrap()).unwrap();
        // Whatever the C library, a program of a standard Rust target either names it or has no loader.
        assert_eq!(object.interpreter.is_some(), object.needed.iter().any(|name| name.starts_with(b"libc.")));
        assert_eq!(object.machine.wide, cfg!(target_pointer_width = "64"));
    }

    #[test]
    fn other_files_are_not_elf() {
        for bytes in [&b""[..], b"#!/bin/sh", b"\x7fEL", b"\x7fELF\x03", b"\x7fELF\x02\x01\x01"] {
            assert_eq!(of(bytes), None);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        /// For any change in the first kilobyte of a real program, the result is within the limits and
        /// nothing panics.
        #[test]
        fn damaged_headers(changes in proptest::collection::vec((0usize..1024, any::<u8>()), 1..16)) {
            let mut bytes = std::fs::read("/bin/true").unwrap();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            if let Some(object) = of(&bytes) {
                prop_assert!(object.needed.len() <= MAX_NEEDED);
                prop_assert!(object.needed.iter().all(|name| name.len() <= 4096));
            }
        }
    }
}
