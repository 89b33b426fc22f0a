//! Parser of `ld.so.cache`, in which the loader of glibc finds libraries by name (glibc,
//! sysdeps/generic/dl-cache.h).
//!
//! Only the current format is read; older files carry it after the older one. If a name occurs more than
//! once, for other machines or newer processors, all paths are kept: the loader's choice depends on the node.

use std::collections::HashMap;

const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";

/// Sizes of `struct cache_file_new` and `struct file_entry_new`, bytes.
const HEADER: usize = 48;
const ENTRY: usize = 24;

/// Paths by library name, in the order of the file.
pub type Cache = HashMap<Vec<u8>, Vec<Vec<u8>>>;

/// Parses the file. Entries with offsets out of range are skipped.
pub fn parse(file: &[u8], little: bool) -> Cache {
    let mut cache = Cache::new();
    let Some(start) = file.windows(MAGIC.len()).position(|window| window == MAGIC) else { return cache };
    let file = &file[start..];
    let number = |at: usize| {
        let bytes: [u8; 4] = file.get(at..at + 4)?.try_into().ok()?;
        let number = if little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) };
        usize::try_from(number).ok()
    };
    let string = |at: usize| {
        let rest = file.get(at..)?;
        let rest = &rest[..rest.len().min(4096)];
        Some(&rest[..rest.iter().position(|b| *b == 0)?])
    };
    let count = number(MAGIC.len()).unwrap_or(0).min(file.len() / ENTRY);
    for at in (0..count).map(|entry| HEADER + entry * ENTRY) {
        let key = number(at + 4).and_then(string);
        let value = number(at + 8).and_then(string);
        if let (Some(key), Some(value)) = (key, value)
            && value.starts_with(b"/")
        {
            cache.entry(key.to_vec()).or_default().push(value.to_vec());
        }
    }
    cache
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a file with `entries`, as ldconfig writes it.
    fn file(entries: &[(&str, &str)], little: bool) -> Vec<u8> {
        let number = |n: usize| {
            let n = u32::try_from(n).unwrap();
            if little { n.to_le_bytes() } else { n.to_be_bytes() }
        };
        let mut strings = Vec::new();
        let base = HEADER + entries.len() * ENTRY;
        let mut out = MAGIC.to_vec();
        out.extend(number(entries.len()));
        out.resize(HEADER, 0);
        for (key, value) in entries {
            let mut put = |text: &str| {
                let at = base + strings.len();
                strings.extend_from_slice(text.as_bytes());
                strings.push(0);
                number(at)
            };
            let (key, value) = (put(key), put(value));
            out.extend([number(0x303), key, value].concat());
            out.extend([0; 12]);
        }
        out.extend(strings);
        out
    }

    #[test]
    fn names_map_to_all_their_paths() {
        for little in [true, false] {
            let new = file(
                &[("libz.so.1", "/lib/v3/libz.so.1"), ("libz.so.1", "/lib/libz.so.1"), ("x", "y")],
                little,
            );
            let old_before_it = [&b"ld.so-1.7.0\0\0\0\0\0"[..], &new].concat();
            for bytes in [new, old_before_it] {
                let cache = parse(&bytes, little);
                let paths = [b"/lib/v3/libz.so.1".to_vec(), b"/lib/libz.so.1".to_vec()];
                assert_eq!(cache.get(&b"libz.so.1"[..]), Some(&paths.to_vec()));
                assert_eq!(cache.len(), 1);
            }
        }
    }

    #[test]
    fn truncated_and_changed_files_do_not_panic() {
        let whole = file(&[("a", "/a"), ("b", "/b")], true);
        for len in 0..whole.len() {
            parse(&whole[..len], true);
        }
        for at in 0..whole.len() {
            for byte in [0, 0x7f, 0xff] {
                let mut changed = whole.clone();
                changed[at] = byte;
                parse(&changed, true);
                parse(&changed, false);
            }
        }
    }
}
