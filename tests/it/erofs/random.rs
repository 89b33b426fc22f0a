//! Steps by which a tree comes to be, as proptest makes them up.

use larder_layer::erofs::Special;
use larder_layer::metadata::Metadata;
use larder_sys::{FileType, Timestamp};
use proptest::prelude::*;

use super::model::{Model, Node};

/// One step. Numbers choose among what is there, modulo how much that is.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Make(usize, Vec<u8>, Attributes, Node),
    /// Many names in one directory.
    Fill(usize, u16, Vec<u8>),
    /// A chain of directories.
    Deep(usize, u16, Vec<u8>),
    Link(usize, Vec<u8>, usize),
    Remove(usize, usize),
    Describe(usize, Attributes),
}

/// Metadata before it is known what for.
#[derive(Clone, Debug)]
pub(crate) struct Attributes {
    metadata: Metadata,
    acl: bool,
}

impl Attributes {
    /// What Linux shows of a file of this type: attributes of the user belong to files and directories alone, ACLs to all
    /// but symbolic links.
    fn of(&self, file_type: FileType) -> Metadata {
        let mut metadata = self.metadata.clone();
        if !matches!(file_type, FileType::Regular | FileType::Directory) {
            metadata.xattrs.retain(|(name, _)| !name.starts_with(b"user."));
        }
        if self.acl && file_type != FileType::Symlink {
            metadata.xattrs.push((b"system.posix_acl_access".to_vec(), acl(6)));
            if file_type == FileType::Directory {
                metadata.xattrs.push((b"system.posix_acl_default".to_vec(), acl(4)));
            }
        }
        metadata
    }
}

/// An ACL that names a user (Linux, include/uapi/linux/posix_acl_xattr.h).
fn acl(permission: u8) -> Vec<u8> {
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, id) in [(0x01, u32::MAX), (0x02, 1234), (0x04, u32::MAX), (0x10, u32::MAX), (0x20, u32::MAX)] {
        acl.extend_from_slice(&[tag, 0, permission, 0]);
        acl.extend_from_slice(&id.to_le_bytes());
    }
    acl
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_filter("no name", |byte| *byte != 0 && *byte != b'/');
    prop_oneof![
        3 => "[a-c]{1,2}".prop_map(String::into_bytes),
        // Around the dots, which are entries themselves.
        2 => "[!.0-]{1,3}".prop_map(String::into_bytes),
        2 => prop::collection::vec(byte.clone(), 1..40),
        1 => prop::collection::vec(byte, 250..=255),
    ]
    .prop_filter("no name", |name| name != b"." && name != b"..")
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![
        4 => 0..200usize,
        2 => 2900..4200usize,
        2 => 0..20_000usize,
        1 => (1..40usize).prop_map(|blocks| blocks * 4096),
        1 => 300_000..700_000usize,
    ];
    (length, any::<u8>()).prop_map(|(length, seed)| {
        let mut state = u32::from(seed) + 1;
        let bytes = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_le_bytes()[3]
        });
        bytes.take(length).collect()
    })
}

fn sparse() -> impl Strategy<Value = Node> {
    let piece = (0..200_000u64, 1..9000usize, any::<u8>());
    let aligned =
        (0..60u64, 1..4usize, any::<u8>()).prop_map(|(gap, blocks, byte)| (gap * 4096, blocks * 4096, byte));
    let pieces = prop::collection::vec(prop_oneof![piece, aligned], 0..8);
    (pieces, 0..300_000u64).prop_map(|(pieces, end)| {
        let mut at = 0;
        let pieces: Vec<(u64, Vec<u8>)> = pieces
            .into_iter()
            .map(|(gap, length, byte)| {
                let offset = at + gap;
                at = offset + length as u64;
                (offset, vec![byte; length])
            })
            .collect();
        Node::Sparse(at + end, pieces)
    })
}

fn node() -> impl Strategy<Value = Node> {
    let target = prop::collection::vec(1..=255u8, 1..60);
    let long = prop::collection::vec(1..=255u8, 2990..=4095);
    let devices = (0..4096u32, 0..1u32 << 20);
    prop_oneof![
        4 => Just(Node::Directory),
        6 => content().prop_map(Node::File),
        3 => sparse(),
        2 => target.prop_map(Node::Symlink),
        1 => long.prop_map(Node::Symlink),
        1 => devices.clone().prop_map(|(a, b)| Node::Special(Special::CharDevice(a, b))),
        1 => devices.prop_map(|(a, b)| Node::Special(Special::BlockDevice(a, b))),
        1 => Just(Node::Special(Special::CharDevice(0, 0))),
        1 => Just(Node::Special(Special::Fifo)),
        1 => Just(Node::Special(Special::Socket)),
    ]
}

fn xattr() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let name = prop_oneof![
        3 => "(user|trusted|security)\\.[a-d]{1,3}",
        1 => "(user|trusted)\\.[a-z]{200,240}",
        1 => Just("trusted.overlay.opaque".to_owned()),
    ];
    let value = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..20),
        2 => prop::collection::vec(any::<u8>(), 0..600),
        1 => (1000..5000usize).prop_map(|length| vec![b'v'; length]),
        1 => Just(vec![b'w'; 65535]),
    ];
    (name.prop_map(String::into_bytes), value)
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let mtime = prop_oneof![
        3 => Just(Timestamp::default()),
        2 => (any::<u32>(), 0..1_000_000_000u32).prop_map(|(sec, nsec)| Timestamp { sec: sec.into(), nsec }),
        1 => (-1i64 << 40..1 << 40, 0..1_000_000_000u32).prop_map(|(sec, nsec)| Timestamp { sec, nsec }),
    ];
    let id =
        prop_oneof![3 => Just(0), 1 => 0..70_000u32, 1 => any::<u32>().prop_map(|id| id.min(u32::MAX - 1))];
    let xattrs = prop_oneof![
        4 => Just(Vec::new()),
        2 => prop::collection::vec(xattr(), 1..4),
        1 => (1..=253u32).prop_map(|n| {
            (0..n).map(|n| (format!("trusted.{n:03}").into_bytes(), n.to_le_bytes().to_vec())).collect()
        }),
    ];
    (0..=0o7777u32, id.clone(), id, mtime, xattrs, prop::bool::weighted(0.1)).prop_map(
        |(mode, uid, gid, mtime, mut xattrs, acl)| {
            xattrs.sort();
            xattrs.dedup_by(|a, b| a.0 == b.0);
            Attributes { metadata: Metadata { mode, uid, gid, mtime, xattrs }, acl }
        },
    )
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    let at = any::<usize>();
    prop_oneof![
        12 => (at, name(), attributes(), node()).prop_map(|(at, name, attributes, node)| {
            Step::Make(at, name, attributes, node)
        }),
        1 => (at, 1..900u16, name()).prop_map(|(at, count, name)| Step::Fill(at, count, name)),
        1 => (at, 1..120u16, name()).prop_map(|(at, count, name)| Step::Deep(at, count, name)),
        3 => (at, name(), at).prop_map(|(at, name, to)| Step::Link(at, name, to)),
        1 => (at, at).prop_map(|(at, which)| Step::Remove(at, which)),
        2 => (at, attributes()).prop_map(|(at, attributes)| Step::Describe(at, attributes)),
    ]
}

pub(crate) fn apply(step: &Step, model: &mut Model<'_>) {
    let (directories, others) = model.present();
    let directory = |at: &usize| directories[at % directories.len()];
    let plain = || Metadata { mode: 0o644, ..Metadata::implied() };
    match step {
        Step::Make(at, name, attributes, node) => {
            let file_type = match node {
                Node::Directory => FileType::Directory,
                Node::File(_) | Node::Sparse(..) => FileType::Regular,
                Node::Symlink(_) => FileType::Symlink,
                Node::Special(_) => FileType::Fifo,
            };
            model.make(directory(at), name, attributes.of(file_type), node.clone());
        }
        Step::Fill(at, count, name) => {
            for n in 0..*count {
                let name =
                    [&n.wrapping_mul(7919).to_string().into_bytes(), &name[..name.len().min(200)]].concat();
                model.make(directory(at), &name, plain(), Node::File(name.clone()));
            }
        }
        Step::Deep(at, count, name) => {
            let mut present = directory(at);
            for _ in 0..*count {
                present = model.make(present, name, plain(), Node::Directory);
            }
        }
        Step::Link(at, name, to) => {
            if !others.is_empty() {
                model.link(directory(at), name, others[to % others.len()]);
            }
        }
        Step::Remove(at, which) => model.clear_nth(directory(at), *which),
        Step::Describe(at, attributes) => {
            let all = [directories.clone(), others].concat();
            let inode = all[at % all.len()];
            model.describe(inode, attributes.of(model.file_type(inode)));
        }
    }
}
