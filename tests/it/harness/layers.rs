//! Layers from a list of members, written and read with the `tar` crate, independently of Larder's own
//! reader.

use std::io::{Read, Write};

use flate2::write::GzEncoder;
use larder_model::digest::Digest;
use larder_testing::image::Layer;
use tar::{Archive, Builder, EntryType, Header};

/// Type of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    File(Vec<u8>),
    Directory,
    Symlink(String),
    HardLink(String),
    Character(u32, u32),
    Fifo,
}

/// One member of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) path: String,
    pub(crate) node: Node,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds since the epoch.
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
}

impl Member {
    pub(crate) fn new(path: &str, node: Node) -> Self {
        let mode = if node == Node::Directory { 0o755 } else { 0o644 };
        Member {
            path: path.into(),
            node,
            mode,
            uid: 0,
            gid: 0,
            mtime: (1_700_000_000, 0),
            xattrs: Vec::new(),
        }
    }

    pub(crate) fn file(path: &str, content: &str) -> Self {
        Member::new(path, Node::File(content.into()))
    }

    pub(crate) fn directory(path: &str) -> Self {
        Member::new(path, Node::Directory)
    }

    pub(crate) fn symlink(path: &str, target: &str) -> Self {
        Member::new(path, Node::Symlink(target.into()))
    }

    pub(crate) fn hard_link(path: &str, target: &str) -> Self {
        Member::new(path, Node::HardLink(target.into()))
    }

    /// Returns a whiteout, or an opaque whiteout, with this name in the tar.
    pub(crate) fn whiteout(path: &str) -> Self {
        Member::file(path, "")
    }

    #[must_use]
    pub(crate) fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    #[must_use]
    pub(crate) fn owner(mut self, uid: u32, gid: u32) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    #[must_use]
    pub(crate) fn mtime(mut self, seconds: i64, nanoseconds: u32) -> Self {
        self.mtime = (seconds, nanoseconds);
        self
    }

    #[must_use]
    pub(crate) fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        self.xattrs.push((name.into(), value.into()));
        self
    }
}

/// Compression of a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// Returns a layer with these members.
pub(crate) fn layer(members: &[Member], packing: Packing) -> Layer {
    let tar = write(members);
    let diff_id = Digest::sha256(&tar);
    match packing {
        Packing::Plain => Layer::new(tar, "tar", None),
        Packing::Gzip => {
            let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(&tar).unwrap();
            Layer::new(gzip.finish().unwrap(), "tar+gzip", Some(diff_id))
        }
        Packing::Zstd => Layer::new(zstd::encode_all(&tar[..], 3).unwrap(), "tar+zstd", Some(diff_id)),
    }
}

/// Returns a tar with these members.
pub(crate) fn write(members: &[Member]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for member in members {
        let mut records: Vec<(String, Vec<u8>)> = Vec::new();
        if member.mtime.1 != 0 {
            let mtime = format!("{}.{:09}", member.mtime.0, member.mtime.1);
            records.push(("mtime".into(), mtime.into()));
        }
        for (name, value) in &member.xattrs {
            records.push((format!("SCHILY.xattr.{name}"), value.clone()));
        }
        let records = records.iter().map(|(name, value)| (name.as_str(), &value[..]));
        tar.append_pax_extensions(records).unwrap();

        let mut header = Header::new_ustar();
        header.set_mode(member.mode);
        header.set_uid(member.uid.into());
        header.set_gid(member.gid.into());
        header.set_mtime(u64::try_from(member.mtime.0).unwrap());
        header.set_size(0);
        let mut content: &[u8] = &[];
        let kind = match &member.node {
            Node::File(bytes) => {
                header.set_size(bytes.len() as u64);
                content = bytes;
                EntryType::Regular
            }
            Node::Directory => EntryType::Directory,
            Node::Symlink(target) => {
                header.set_link_name_literal(target).unwrap();
                EntryType::Symlink
            }
            Node::HardLink(target) => {
                header.set_link_name_literal(target).unwrap();
                EntryType::Link
            }
            Node::Character(major, minor) => {
                header.set_device_major(*major).unwrap();
                header.set_device_minor(*minor).unwrap();
                EntryType::Char
            }
            Node::Fifo => EntryType::Fifo,
        };
        header.set_entry_type(kind);
        header.set_path(&member.path).unwrap();
        header.set_cksum();
        tar.append(&header, content).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Returns the members of a layer's tar, in order.
pub(crate) fn read(layer: &Layer) -> Vec<Member> {
    let tar: Box<dyn Read> = match layer.suffix {
        "tar+gzip" => Box::new(flate2::read::MultiGzDecoder::new(&layer.blob[..])),
        "tar+zstd" => Box::new(zstd::Decoder::new(&layer.blob[..]).unwrap()),
        _ => Box::new(&layer.blob[..]),
    };
    let mut archive = Archive::new(tar);
    let members = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut member = Member::new("", Node::Fifo);
        if let Some(records) = entry.pax_extensions().unwrap() {
            for record in records.map(|record| record.unwrap()) {
                let key = record.key().unwrap();
                if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                    member.xattrs.push((name.into(), record.value_bytes().into()));
                } else if key == "mtime" {
                    let (seconds, fraction) = record.value().unwrap().split_once('.').unwrap();
                    member.mtime = (seconds.parse().unwrap(), fraction.parse().unwrap());
                }
            }
        }
        let header = entry.header().clone();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        member.path = text(&entry.path_bytes());
        let target = entry.link_name_bytes().map(|bytes| text(&bytes));
        member.mode = header.mode().unwrap() & 0o7777;
        member.uid = u32::try_from(header.uid().unwrap()).unwrap();
        member.gid = u32::try_from(header.gid().unwrap()).unwrap();
        if member.mtime.1 == 0 {
            member.mtime = (i64::try_from(header.mtime().unwrap()).unwrap(), 0);
        }
        member.node = match header.entry_type() {
            EntryType::Directory => Node::Directory,
            EntryType::Symlink => Node::Symlink(target.unwrap()),
            EntryType::Link => Node::HardLink(target.unwrap()),
            EntryType::Fifo => Node::Fifo,
            EntryType::Char => Node::Character(
                header.device_major().unwrap().unwrap(),
                header.device_minor().unwrap().unwrap(),
            ),
            EntryType::Regular => {
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                Node::File(content)
            }
            other => panic!("{}: this reader does not support {other:?}", member.path),
        };
        member
    });
    members.collect()
}
