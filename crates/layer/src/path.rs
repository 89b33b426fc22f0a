//! Paths of members, which are cleaned once, before any other use.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::fault::Fault;
use super::limits::{MAX_DEPTH, NAME_MAX};

/// Prefix of whiteouts (OCI image spec, layer.md, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";

/// Prefix of names that AUFS reserved for itself, and that very old images still contain.
const AUFS: &[u8] = b".wh..wh.";

/// Name of the opaque whiteout.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// A cleaned path: components joined by single slashes, none of them empty, `.` or `..`. The root is the
/// empty path.
pub type Clean = Vec<u8>;

/// Cleans a path lexically, as podman and containerd do. Absolute paths start at the root of the layer. `.`
/// and empty components are dropped. `..` removes the previous component and must not leave the layer.
///
/// # Errors
/// The [`Fault`] of the path.
pub fn clean(path: &[u8]) -> Result<Clean, Fault> {
    cleaned(path, NAME_MAX).map(Cow::into_owned)
}

/// Cleans the path of a member as [`clean`] does; most paths are part of the given one. The name of a
/// whiteout is longer than the name that it hides, so the limit of Linux applies to the hidden name.
///
/// # Errors
/// The [`Fault`] of the path.
pub fn clean_member(path: &[u8]) -> Result<Cow<'_, [u8]>, Fault> {
    let clean = cleaned(path, WHITEOUT.len() + NAME_MAX)?;
    let (parent, name) = split(&clean);
    let last = name.strip_prefix(WHITEOUT).unwrap_or(name);
    let fits = components(parent).chain([last]).all(|component| component.len() <= NAME_MAX);
    if fits { Ok(clean) } else { Err(Fault::NameTooLong) }
}

fn cleaned(path: &[u8], name_max: usize) -> Result<Cow<'_, [u8]>, Fault> {
    match clean_part(path) {
        Some(clean) => {
            components(clean).try_for_each(|component| check(component, name_max))?;
            within_depth(clean)?;
            Ok(Cow::Borrowed(clean))
        }
        None => rewritten(path, name_max).map(Cow::Owned),
    }
}

/// Returns the clean path that `path` contains between leading `/` and `./` and trailing `/`; `None` if it
/// must be rewritten. Checks no limits.
fn clean_part(path: &[u8]) -> Option<&[u8]> {
    let mut part = path;
    while let Some(rest) = part.strip_prefix(b"./").or_else(|| part.strip_prefix(b"/")) {
        part = rest;
    }
    while let Some(rest) = part.strip_suffix(b"/") {
        part = rest;
    }
    let is_plain = |component: &[u8]| !matches!(component, b"" | b"." | b"..");
    (part.is_empty() || part.split(|b| *b == b'/').all(is_plain)).then_some(part)
}

fn check(component: &[u8], name_max: usize) -> Result<(), Fault> {
    match component {
        _ if component.len() > name_max => Err(Fault::NameTooLong),
        _ if component.contains(&0) => Err(Fault::Nul),
        _ => Ok(()),
    }
}

fn within_depth(clean: &[u8]) -> Result<(), Fault> {
    if components(clean).count() > MAX_DEPTH { Err(Fault::TooDeep) } else { Ok(()) }
}

/// Cleans any path, component by component.
fn rewritten(path: &[u8], name_max: usize) -> Result<Clean, Fault> {
    let mut clean = Vec::with_capacity(path.len());
    for component in path.split(|b| *b == b'/') {
        match component {
            b"" | b"." => {}
            b".." if clean.is_empty() => return Err(Fault::Escapes),
            b".." => clean.truncate(split(&clean).0.len()),
            _ => {
                check(component, name_max)?;
                push(&mut clean, component);
            }
        }
    }
    within_depth(&clean)?;
    Ok(clean)
}

/// Appends a component to `path`.
pub fn push(path: &mut Vec<u8>, component: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(component);
}

/// Returns `path` with `component` appended; an empty `component` adds nothing.
pub fn join(path: &[u8], component: &[u8]) -> Vec<u8> {
    let mut joined = Vec::with_capacity(path.len() + 1 + component.len());
    joined.extend_from_slice(path);
    if !component.is_empty() {
        push(&mut joined, component);
    }
    joined
}

/// Returns the parent and the last component of a clean path. The parent of a top-level name is the root, the
/// empty path.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// Returns the components of a clean path, in order.
pub fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|b| *b == b'/').filter(|component| !component.is_empty())
}

/// Removes `path` and everything below it from a map, without scanning the other entries.
pub fn remove_tree<V>(map: &mut BTreeMap<Vec<u8>, V>, path: &[u8]) {
    if path.is_empty() {
        map.clear();
        return;
    }
    map.remove(path);
    // Everything below starts with the path and a slash, and the byte after the slash is '0'.
    let (first, end) = ([path, b"/"].concat(), [path, b"0"].concat());
    let below: Vec<Vec<u8>> = map.range(first..end).map(|(path, _)| path.clone()).collect();
    for path in below {
        map.remove(&path);
    }
}

/// The meaning of the last component of a member's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning<'a> {
    /// An ordinary name.
    Plain,
    /// Hides this name in lower layers.
    Whiteout(&'a [u8]),
    /// Hides everything that lower layers have in the parent directory.
    Opaque,
    /// Internal data of AUFS, which every runtime skips.
    Aufs,
}

/// Returns the meaning of a clean path.
///
/// # Errors
/// [`Fault::WhiteoutOfNothing`] for a whiteout without a valid name.
pub fn meaning(path: &[u8]) -> Result<Meaning<'_>, Fault> {
    if components(path).next().is_some_and(|first| first.starts_with(AUFS) && first != OPAQUE) {
        return Ok(Meaning::Aufs);
    }
    let (_, name) = split(path);
    if name == OPAQUE {
        return Ok(Meaning::Opaque);
    }
    match name.strip_prefix(WHITEOUT) {
        None => Ok(Meaning::Plain),
        Some(b"" | b"." | b"..") => Err(Fault::WhiteoutOfNothing),
        // A name that starts with .wh. cannot exist in a layer, so hiding one is not an honest whiteout.
        Some(hidden) if hidden.starts_with(WHITEOUT) => Err(Fault::WhiteoutOfNothing),
        Some(hidden) => Ok(Meaning::Whiteout(hidden)),
    }
}

/// Formats a clean path for people: escaped, and the root as `.`.
pub fn shown(path: &[u8]) -> String {
    if path.is_empty() { ".".to_owned() } else { escape(path) }
}

/// Formats `bytes` for people, logs and JSON: printable ASCII unchanged, all other bytes and the backslash as
/// `\xNN`.
pub fn escape(bytes: &[u8]) -> String {
    let mut escaped = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b' '..=b'~' if *byte != b'\\' => escaped.push(char::from(*byte)),
            _ => escaped.push_str(&format!("\\x{byte:02x}")),
        }
    }
    escaped
}

/// Returns the bytes that [`escape`] formatted as `text`; `None` if `escape` never produces this text.
pub fn unescape(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        if *first != b'\\' {
            bytes.push(*first);
            rest = after;
            continue;
        }
        let (digits, after) = after.strip_prefix(b"x")?.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = after;
    }
    (escape(&bytes).as_bytes() == text).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cleaning() {
        for (given, want) in [
            ("./a//b/./c/", "a/b/c"),
            ("/etc/passwd", "etc/passwd"),
            ("a/../b", "b"),
            ("a/b/../../c", "c"),
            ("./", ""),
            ("/", ""),
            ("", ""),
        ] {
            assert_eq!(clean(given.as_bytes()).unwrap(), want.as_bytes(), "{given}");
        }
        for bad in ["..", "../a", "a/../../b", "/../a", "./.."] {
            assert_eq!(clean(bad.as_bytes()), Err(Fault::Escapes), "{bad}");
        }
        assert_eq!(clean(&[b'a'; 256]), Err(Fault::NameTooLong));
        let whiteout = |len: usize| format!("d/.wh.{}", "a".repeat(len));
        for long in [252, 255] {
            assert_eq!(clean(whiteout(long).as_bytes()), Err(Fault::NameTooLong));
            assert_eq!(clean_member(whiteout(long).as_bytes()).unwrap(), whiteout(long).as_bytes());
        }
        let below = format!("{}/x", whiteout(255));
        for bad in [whiteout(256), below, "a".repeat(256)] {
            assert_eq!(clean_member(bad.as_bytes()), Err(Fault::NameTooLong), "{bad}");
        }
        assert_eq!(clean(b"a\0b"), Err(Fault::Nul));
    }

    #[test]
    fn whiteouts() {
        assert_eq!(meaning(b"a/.wh.b"), Ok(Meaning::Whiteout(b"b")));
        assert_eq!(meaning(b".wh..wh..opq"), Ok(Meaning::Opaque));
        assert_eq!(meaning(b"a/.wh..wh..opq"), Ok(Meaning::Opaque));
        assert_eq!(meaning(b".wh..wh.plnk/12.34"), Ok(Meaning::Aufs));
        assert_eq!(meaning(b".wh..wh.aufs"), Ok(Meaning::Aufs));
        assert_eq!(meaning(b"a.wh.b"), Ok(Meaning::Plain));
        for bad in [".wh.", "a/.wh..", "a/.wh...", "a/.wh..wh.x"] {
            assert_eq!(meaning(bad.as_bytes()), Err(Fault::WhiteoutOfNothing), "{bad}");
        }
    }

    #[test]
    fn a_tree_is_removed_and_nothing_beside_it() {
        let paths = ["a", "a/b", "a/b/c", "a.txt", "a0", "ab", "b"];
        let mut map: BTreeMap<Vec<u8>, ()> =
            paths.iter().map(|path| (path.as_bytes().to_vec(), ())).collect();
        remove_tree(&mut map, b"a");
        let left: Vec<_> = map.keys().map(|path| path.escape_ascii().to_string()).collect();
        assert_eq!(left, ["a.txt", "a0", "ab", "b"]);
    }

    proptest! {
        #[test]
        fn clean_paths_have_only_plain_components(path in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(clean) = clean(&path) {
                for component in components(&clean) {
                    prop_assert!(component != b"." && component != b".." && component.len() <= NAME_MAX);
                    prop_assert!(!component.contains(&0));
                }
                prop_assert_eq!(components(&clean).collect::<Vec<_>>().join(&b'/'), clean);
            }
        }

        #[test]
        fn a_path_that_is_not_rewritten_would_be_the_same(
            path in "[./ab\\x00]{0,40}|(\\./|/){0,3}[a-c]{1,3}(/[.a-c]{1,3}){0,4}/{0,2}|(a/){254,258}|(a/){0,2}a{253,260}(/b)?",
        ) {
            let path = path.as_bytes();
            prop_assert_eq!(cleaned(path, NAME_MAX).map(Cow::into_owned), rewritten(path, NAME_MAX));
        }

        #[test]
        fn escaped_bytes_come_back(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(unescape(escape(&bytes).as_bytes()), Some(bytes));
        }

        #[test]
        fn only_what_escape_writes_is_read(text in r"[a-c\\x0-9A-F\n]{0,12}") {
            if let Some(bytes) = unescape(text.as_bytes()) {
                prop_assert_eq!(escape(&bytes), text);
            }
        }

        #[test]
        fn split_and_join_are_inverse(path in "[a-c]{1,3}(/[a-c]{1,3}){0,4}") {
            let (parent, name) = split(path.as_bytes());
            prop_assert_eq!(join(parent, name), path.as_bytes());
        }
    }
}
