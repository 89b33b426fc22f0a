//! Records of pax extended headers (POSIX.1-2017, pax, "pax Extended Header"), read as in Go's archive/tar.

use std::collections::BTreeMap;

use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{Engine as _, alphabet};

use super::sparse::{self, Region};
use super::{Fault, Timestamp, number};

/// The records of one member's extended header. An empty value keeps the value of the main header.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_target: Option<Vec<u8>>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) size: Option<i64>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) sparse: GnuSparse,
    schily: BTreeMap<Vec<u8>, Vec<u8>>,
    libarchive: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// The `GNU.sparse.*` records.
#[derive(Debug, Default)]
pub(super) struct GnuSparse {
    pub(super) major: Vec<u8>,
    pub(super) minor: Vec<u8>,
    pub(super) name: Vec<u8>,
    pub(super) size: Option<i64>,
    pub(super) real_size: Option<i64>,
    pub(super) regions: Option<i64>,
    /// Version 0.1 has the map as one value, version 0.0 as one record per number.
    pub(super) map: Option<Vec<Region>>,
}

impl GnuSparse {
    /// Reports whether the member is marked as sparse.
    pub(super) fn is_present(&self) -> bool {
        !self.major.is_empty() || !self.minor.is_empty() || self.map.is_some()
    }
}

impl Pax {
    /// Reads all records of `body`.
    ///
    /// # Errors
    /// [`Fault::Pax`] for a malformed record; [`Fault::Limit`] for a map with too many regions.
    pub(super) fn parse(body: &[u8], max_regions: usize) -> Result<Self, Fault> {
        let mut pax = Pax::default();
        let mut pairs = sparse::Pairs::new(max_regions);
        let mut rest = body;
        while !rest.is_empty() {
            let Line { key, value, rest: after } = record(rest)?;
            rest = after;
            match key {
                b"GNU.sparse.offset" => pairs.offset(value)?,
                b"GNU.sparse.numbytes" => pairs.length(value)?,
                _ => pax.set(key, value, max_regions)?,
            }
        }
        if let Some(map) = pairs.finish()? {
            pax.sparse.map = Some(map);
        }
        Ok(pax)
    }

    fn set(&mut self, key: &[u8], value: &[u8], max_regions: usize) -> Result<(), Fault> {
        match key {
            b"path" => self.path = text(value, "path")?,
            b"linkpath" => self.link_target = text(value, "linkpath")?,
            b"uname" | b"gname" => drop(text(value, "a user or group name")?),
            b"uid" => self.uid = integer(value, "uid is not a decimal number")?,
            b"gid" => self.gid = integer(value, "gid is not a decimal number")?,
            b"size" => self.size = integer(value, "size is not a decimal number")?,
            b"mtime" => self.mtime = time(value)?,
            b"atime" | b"ctime" => drop(time(value)?),
            b"GNU.sparse.major" => self.sparse.major = value.to_vec(),
            b"GNU.sparse.minor" => self.sparse.minor = value.to_vec(),
            b"GNU.sparse.name" => self.sparse.name = text(value, "GNU.sparse.name")?.unwrap_or_default(),
            b"GNU.sparse.size" => {
                self.sparse.size = integer(value, "GNU.sparse.size is not a decimal number")?
            }
            b"GNU.sparse.realsize" => {
                self.sparse.real_size = integer(value, "GNU.sparse.realsize is not a decimal number")?;
            }
            b"GNU.sparse.numblocks" => {
                self.sparse.regions = integer(value, "GNU.sparse.numblocks is not a decimal number")?;
            }
            b"GNU.sparse.map" => self.sparse.map = sparse::parse_list(value, max_regions)?,
            _ => self.set_xattr(key, value)?,
        }
        Ok(())
    }

    fn set_xattr(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.schily.insert(attribute(name.to_vec())?, value.to_vec());
        } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
            let name = url_decode(name).ok_or(Fault::Pax("LIBARCHIVE.xattr name is not URL-encoded"))?;
            let value = LENIENT_BASE64
                .decode(value)
                .map_err(|_| Fault::Pax("LIBARCHIVE.xattr value is not base64"))?;
            self.libarchive.insert(attribute(name)?, value);
        }
        Ok(())
    }

    /// Returns the attributes by name. bsdtar writes each attribute twice; the raw form (SCHILY) takes
    /// precedence, because other tools read that one.
    pub(super) fn take_xattrs(&mut self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut all = std::mem::take(&mut self.libarchive);
        all.append(&mut self.schily);
        all.into_iter().collect()
    }
}

/// libarchive writes base64 without padding; other tools pad.
const LENIENT_BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// One record, and the bytes after it.
struct Line<'a> {
    key: &'a [u8],
    value: &'a [u8],
    rest: &'a [u8],
}

/// Splits off one record `"%d %s=%s\n"` by its length, so that a newline in a value is data.
fn record(bytes: &[u8]) -> Result<Line<'_>, Fault> {
    let space = bytes.iter().take(20).position(|b| *b == b' ');
    let space = space.ok_or(Fault::Pax("no length"))?;
    let length = number::decimal(&bytes[..space]).and_then(|n| usize::try_from(n).ok());
    let length = length.ok_or(Fault::Pax("the length is not a number"))?;
    // The shortest possible record is "5 k=\n".
    if length < 5 || length <= space + 1 || length > bytes.len() {
        return Err(Fault::Pax("the length does not match"));
    }
    let (this, rest) = bytes.split_at(length);
    let pair = this[space + 1..].strip_suffix(b"\n").ok_or(Fault::Pax("no newline at its end"))?;
    let equals = pair.iter().position(|b| *b == b'=').ok_or(Fault::Pax("no '='"))?;
    let (key, value) = (&pair[..equals], &pair[equals + 1..]);
    if key.is_empty() {
        return Err(Fault::Pax("empty key"));
    }
    if key.contains(&0) {
        return Err(Fault::Pax("a key contains a NUL byte"));
    }
    Ok(Line { key, value, rest })
}

fn text(value: &[u8], name: &'static str) -> Result<Option<Vec<u8>>, Fault> {
    if value.contains(&0) {
        return Err(Fault::Nul(name));
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

fn integer(value: &[u8], message: &'static str) -> Result<Option<i64>, Fault> {
    if value.is_empty() {
        return Ok(None);
    }
    number::decimal(value).map(Some).ok_or(Fault::Pax(message))
}

fn time(value: &[u8]) -> Result<Option<Timestamp>, Fault> {
    if value.is_empty() {
        return Ok(None);
    }
    let time = number::timestamp(value).ok_or(Fault::Pax("a time is not a decimal number"))?;
    Ok(Some(time))
}

fn attribute(name: Vec<u8>) -> Result<Vec<u8>, Fault> {
    if name.is_empty() {
        return Err(Fault::Pax("an extended attribute without a name"));
    }
    if name.contains(&0) {
        return Err(Fault::Nul("the name of an extended attribute"));
    }
    Ok(name)
}

fn url_decode(name: &[u8]) -> Option<Vec<u8>> {
    let digit = |b: &u8| char::from(*b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let [first, after @ ..] = rest {
        match (first, after) {
            (b'%', [high, low, after @ ..]) => {
                out.push(digit(high)? << 4 | digit(low)?);
                rest = after;
            }
            (b'%', _) => return None,
            _ => {
                out.push(*first);
                rest = after;
            }
        }
    }
    Some(out)
}
