//! The format of `prefetch.list`.
//!
//! ```text
//! larder-prefetch 1
//! image sha256:<manifest> <name>
//! file <bytes> overlay/<chain ID>/diff/<path>
//! file <bytes> erofs/sha256/<2>/<diff ID>.erofs/<path in the image>
//! file <bytes> erofs/chain/<chain ID>.erofs/<path in the image>
//! ```
//!
//! An `image` line is followed by the files of the image, in the order in which a start reads them. A file is
//! named by its path in a layer, from the root of the volume and without symbolic links. So it can be read
//! where nothing is merged or mounted. Names and paths are the last word of a line; in them, the backslash
//! and bytes outside printable ASCII are written as `\xNN`. So a line contains no other line break. Images
//! are in the order of `cache.json`. A reader of version 1 rejects other versions and any other line.

use larder_layer::path::{self, escape, unescape};
use larder_model::digest::Digest;

const HEADER: &str = "larder-prefetch 1";

/// One image and its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Digest of the manifest.
    pub manifest: Digest,
    /// Name of the image.
    pub name: Vec<u8>,
    /// Files in the order in which they are read.
    pub files: Vec<Entry>,
}

/// A regular file of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Path of the layer's tree that contains it, from the root of the volume.
    pub tree: String,
    /// Clean path in the tree.
    pub path: Vec<u8>,
    /// Size of the file, bytes.
    pub size: u64,
}

/// A line that does not have this format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} does not have the format {HEADER:?}")]
pub struct Malformed {
    /// Line number, starting at 1.
    pub line: usize,
}

/// Writes the list of `sections`.
pub fn render(sections: &[Section]) -> Vec<u8> {
    let mut text = format!("{HEADER}\n");
    for section in sections {
        text.push_str(&format!("image {} {}\n", section.manifest, escape(&section.name)));
        for Entry { tree, path, size } in &section.files {
            text.push_str(&format!("file {size} {tree}/{}\n", escape(path)));
        }
    }
    text.into_bytes()
}

/// Parses an untrusted list. The digits of tree names, and that paths are clean and relative, are checked.
///
/// # Errors
/// A line does not have the format.
pub fn parse(list: &[u8]) -> Result<Vec<Section>, Malformed> {
    let mut sections: Vec<Section> = Vec::new();
    let body = list.strip_suffix(b"\n").unwrap_or(list);
    for (at, line) in body.split(|b| *b == b'\n').enumerate() {
        let malformed = || Malformed { line: at + 1 };
        if at == 0 {
            if line != HEADER.as_bytes() {
                return Err(malformed());
            }
            continue;
        }
        match words(line).ok_or_else(malformed)? {
            ("image", manifest, name) => sections.push(Section {
                manifest: manifest.parse().map_err(|_| malformed())?,
                name: unescape(name).ok_or_else(malformed)?,
                files: Vec::new(),
            }),
            ("file", size, name) => {
                let files = &mut sections.last_mut().ok_or_else(malformed)?.files;
                files.push(entry(size, name).ok_or_else(malformed)?);
            }
            _ => return Err(malformed()),
        }
    }
    Ok(sections)
}

/// Splits a line into its keyword, second word, and unparsed rest.
fn words(line: &[u8]) -> Option<(&str, &str, &[u8])> {
    let mut words = line.splitn(3, |b| *b == b' ');
    let (keyword, second) = (words.next()?, words.next()?);
    Some((std::str::from_utf8(keyword).ok()?, std::str::from_utf8(second).ok()?, words.next()?))
}

fn entry(size: &str, name: &[u8]) -> Option<Entry> {
    let (tree, rest) = split_tree(name)?;
    let path = unescape(rest)?;
    let is_clean = path::clean(&path).is_ok_and(|clean| clean == path && !clean.is_empty());
    // Only the canonical form is accepted: no sign, no leading zero.
    let bytes: u64 = size.parse().ok().filter(|bytes: &u64| bytes.to_string() == size)?;
    let tree = String::from_utf8(tree.to_vec()).ok()?;
    is_clean.then_some(Entry { tree, path, size: bytes })
}

/// Splits a name into the path of a tree and the rest.
fn split_tree(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let is_hex = |digits: &[u8]| digits.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let mut words = name.split(|b| *b == b'/');
    let (first, second, third) = (words.next()?, words.next()?, words.next()?);
    let image = |file: &[u8], digits: usize| {
        let hex = file.strip_suffix(b".erofs").filter(|hex| hex.len() == digits && is_hex(hex));
        hex.map(<[u8]>::to_vec)
    };
    let words = match (first, second) {
        (b"overlay", chain) if chain.len() == 64 && is_hex(chain) && third == b"diff" => 3,
        (b"erofs", b"chain") => image(third, 64).map(|_| 3)?,
        (b"erofs", b"sha256" | b"sha512") => {
            let digits = if second == b"sha256" { 64 } else { 128 };
            let hex = image(words.next()?, digits)?;
            (hex[..2] == *third).then_some(4)?
        }
        _ => return None,
    };
    let end = name.iter().enumerate().filter(|(_, b)| **b == b'/').nth(words - 1)?.0;
    Some((&name[..end], &name[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sections() -> Vec<Section> {
        let hex = "ab".repeat(32);
        let trees = [
            format!("overlay/{hex}/diff"),
            format!("erofs/chain/{hex}.erofs"),
            format!("erofs/sha256/ab/{hex}.erofs"),
            format!("erofs/sha512/ab/{hex}{hex}.erofs"),
        ];
        let paths: [&[u8]; 4] = [b"bin/sh", b"a b/\nfile 1 overlay", b"\xff\\", b"diff/x"];
        let entry = |(tree, path): (String, &[u8])| Entry { tree, path: path.to_vec(), size: 7 };
        let files = trees.into_iter().zip(paths).map(entry).collect::<Vec<_>>();
        let section = |n: u8, files| Section {
            manifest: Digest::sha256(&[n]),
            name: b"docker.io/library/nginx:1.27".to_vec(),
            files,
        };
        vec![section(1, files), section(2, Vec::new())]
    }

    #[test]
    fn rendered_lists_are_parsed() {
        let text = render(&sections());
        assert_eq!(text.iter().filter(|b| **b == b'\n').count(), 7);
        assert_eq!(parse(&text), Ok(sections()));
        assert_eq!(parse(&render(&[])), Ok(Vec::new()));
    }

    #[test]
    fn malformed_lists_are_rejected() {
        let layer = "ab".repeat(32);
        let image = format!("image {} x", Digest::sha256(b""));
        let file = |path: &str| format!("{HEADER}\n{image}\nfile 1 overlay/{layer}/diff/{path}\n");
        assert!(parse(file("a").as_bytes()).is_ok());
        let bad = [
            file(""),
            file("/a"),
            file("a/"),
            file("a//b"),
            file("./a"),
            file("../a"),
            file("a/../../b"),
            file(r"a\x2fb"),
            file(r"\x2e\x2e/a"),
            file(r"a\x00"),
            file(r"a\xFF"),
            file("\u{e9}"),
            file("a").replace("file 1", "file -1"),
            file("a").replace("file 1", "file 01"),
            file("a").replace("file 1", "link 1"),
            file("a").replace(&layer, &layer.to_uppercase()),
            file("a").replace(&layer, &format!("../{}", &layer[3..])),
            file("a").replace("/diff/", "/"),
            file("a").replace("/diff/", ".erofs/"),
            file("a").replace(&format!("overlay/{layer}/diff"), &format!("erofs/chain/{layer}")),
            file("a").replace(&format!("overlay/{layer}/diff"), &format!("erofs/sha256/aa/{layer}.erofs")),
            file("a").replace(&format!("overlay/{layer}/diff"), &format!("erofs/sha512/ab/{layer}.erofs")),
            file("a").replace(&format!("overlay/{layer}/diff"), &format!("erofs/../ab/{layer}.erofs")),
            file("a").replace(&image, ""),
            file("a").replace("prefetch 1", "prefetch 2"),
            file("a").replace("sha256:", "md5:"),
            file("a") + "\n",
            String::new(),
        ];
        for text in bad {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
