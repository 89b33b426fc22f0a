//! Parses any bytes as the files that `prefetch` reads from images and volumes: ELF files, `ld.so.cache`,
//! `prefetch.list`.
#![no_main]

use std::io::Cursor;

use larder_prefetch::{elf, ld_cache, list};
use libfuzzer_sys::fuzz_target;

/// Starts of an ELF header for both widths and byte orders, so that the fuzzer gets past the header.
const ELF_HEADERS: [&[u8]; 4] =
    [b"\x7fELF\x01\x01\x01", b"\x7fELF\x01\x02\x01", b"\x7fELF\x02\x01\x01", b"\x7fELF\x02\x02\x01"];
const CACHE: &[u8] = b"glibc-ld.so.cache1.1";
const LIST: &[u8] = b"larder-prefetch 1\n";

fuzz_target!(|input: &[u8]| {
    check_elf(input);
    for head in ELF_HEADERS {
        let mut file = input.to_vec();
        if let Some(start) = file.get_mut(..head.len()) {
            start.copy_from_slice(head);
            check_elf(&file);
        }
    }
    for file in [input, &[CACHE, input].concat()] {
        for little in [true, false] {
            for (name, paths) in ld_cache::parse(file, little) {
                assert!(
                    name.len() <= 4096
                        && paths.iter().all(|path| path.starts_with(b"/") && path.len() <= 4096)
                );
            }
        }
    }
    for text in [input, &[LIST, input].concat()] {
        let Ok(sections) = list::parse(text) else { continue };
        // A parsed list renders to the same text, and its paths stay below the root.
        let written = list::render(&sections);
        assert_eq!(list::parse(&written).as_ref(), Ok(&sections));
        for entry in sections.iter().flat_map(|section| &section.files) {
            assert!(!entry.tree.contains("..") && !entry.path.starts_with(b"/"));
            assert!(entry.path.split(|byte| *byte == b'/').all(|part| !matches!(part, b"" | b"." | b"..")));
        }
    }
});

fn check_elf(file: &[u8]) {
    if let Some(object) = elf::read(Cursor::new(file)) {
        assert!(object.needed.len() <= 512 && object.needed.iter().all(|name| name.len() <= 4096));
    }
}
