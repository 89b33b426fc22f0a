//! The form of `prefetch.list`.
//!
//! ```text
//! larder-prefetch 1
//! image sha256:<manifest> <name>
//! file <bytes> overlay/<chain ID>/diff/<path>
//! ```
//!
//! An `image` line is followed by its files, those that are read first before others. A file is named by the layer that
//! holds it, from the root of the volume and without a symbolic link on the way, so that it can be read where nothing is
//! merged. Names and paths are the last word of a line and hold bytes outside printable ASCII, and the backslash, as
//! `\xNN`; a line never holds another line break. Images are in the order of `cache.json`. A reader of version 1 refuses
//! another version, and there are no other lines.

use crate::layer::path::{self, escape, unescape};
use crate::model::digest::Digest;

const HEADER: &str = "larder-prefetch 1";

/// One image and its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Digest of the manifest.
    pub manifest: Digest,
    /// Name of the image.
    pub name: Vec<u8>,
    /// Files, the first first.
    pub files: Vec<Entry>,
}

/// A regular file of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Hexadecimal chain ID of the layer, 64 digits.
    pub layer: String,
    /// Clean path in the layer.
    pub path: Vec<u8>,
    /// Size, bytes.
    pub size: u64,
}

/// A line that is not of this form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} is not of the form that this larder knows ({HEADER:?})")]
pub struct Malformed {
    /// Its number, from 1.
    pub line: usize,
}

/// Writes the list.
pub fn render(sections: &[Section]) -> Vec<u8> {
    let mut text = format!("{HEADER}\n");
    for section in sections {
        text.push_str(&format!("image {} {}\n", section.manifest, escape(&section.name)));
        for Entry { layer, path, size } in &section.files {
            text.push_str(&format!("file {size} overlay/{layer}/diff/{}\n", escape(path)));
        }
    }
    text.into_bytes()
}

/// Reads a list that anybody may have written: chain IDs are digits, paths are clean and lead nowhere but down.
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

/// Keyword, second word, and the rest as it is.
fn words(line: &[u8]) -> Option<(&str, &str, &[u8])> {
    let mut words = line.splitn(3, |b| *b == b' ');
    let (keyword, second) = (words.next()?, words.next()?);
    Some((std::str::from_utf8(keyword).ok()?, std::str::from_utf8(second).ok()?, words.next()?))
}

fn entry(size: &str, name: &[u8]) -> Option<Entry> {
    let (layer, rest) = name.strip_prefix(b"overlay/")?.split_at_checked(64)?;
    let path = unescape(rest.strip_prefix(b"/diff/")?)?;
    let is_hex = layer.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let is_clean = path::clean(&path).is_ok_and(|clean| clean == path && !clean.is_empty());
    // Only as it is written: no sign, no leading zero.
    let bytes: u64 = size.parse().ok().filter(|bytes: &u64| bytes.to_string() == size)?;
    let layer = String::from_utf8(layer.to_vec()).ok()?;
    (is_hex && is_clean).then_some(Entry { layer, path, size: bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sections() -> Vec<Section> {
        let entry = |path: &[u8]| Entry { layer: "ab".repeat(32), path: path.to_vec(), size: 7 };
        let files = vec![entry(b"bin/sh"), entry(b"a b/\nfile 1 overlay"), entry(b"\xff\\")];
        let section = |n: u8, files| Section {
            manifest: Digest::sha256(&[n]),
            name: b"docker.io/library/nginx:1.27".to_vec(),
            files,
        };
        vec![section(1, files), section(2, Vec::new())]
    }

    #[test]
    fn what_is_written_is_read() {
        let text = render(&sections());
        assert_eq!(text.iter().filter(|b| **b == b'\n').count(), 6);
        assert_eq!(parse(&text), Ok(sections()));
        assert_eq!(parse(&render(&[])), Ok(Vec::new()));
    }

    #[test]
    fn nothing_else_is_read() {
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
