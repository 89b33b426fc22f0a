//! Compares what the two sinks show of a layer that is settled on the same lower layer.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;
use std::sync::atomic::AtomicU64;

use larder_testing::layer::LayerBuilder;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::without_conflicts;
use crate::cores::Cores;
use crate::erofs::Options;
use crate::erofs::read::ImageNode;
use crate::erofs_sink::apply::Image;
use crate::erofs_sink::fixup::{self, Times};
use crate::limits::Limits;
use crate::lower::{self, Lower, LowerEntry};
use crate::metadata::Metadata;
use crate::overlay::attributes::Rights;
use crate::space::NoAccounting;
use crate::stored::StoredDir;
use crate::tar::Reader;
use crate::{erofs_sink, overlay, path};
use larder_sys::{Dir, FileType, Timestamp, process};

/// A member of a tar.
#[derive(Clone, Debug)]
enum Member {
    Directory(String, u32),
    File(String),
    Symlink(String, String),
    HardLink(String, String),
    Whiteout(String),
    Opaque(String),
}

use Member::{Directory, File as Regular, HardLink, Opaque, Symlink, Whiteout};

/// Returns the tar of these members, whose owner is the user of this process.
fn tar(members: &[Member]) -> Vec<u8> {
    let (uid, gid) = process::ids();
    let mut tar = LayerBuilder::new().owner(uid.into(), gid.into());
    for (number, member) in members.iter().enumerate() {
        let number = number as u64;
        tar = tar.mtime(1000 + number).mode(0o600 + (number % 64) as u32);
        tar = match member {
            Directory(path, mode) => tar.mode(*mode).dir(path),
            Regular(path) => tar.file(path, format!("content {number}")),
            Symlink(path, target) => tar.symlink(path, target),
            HardLink(path, target) => tar.hardlink(path, target),
            Whiteout(path) => tar.whiteout(path),
            Opaque(path) => tar.opaque(path),
        };
    }
    tar.tar()
}

fn stored(path: &Path) -> StoredDir {
    StoredDir::Directory(Dir::open(path).unwrap())
}

/// Applies and settles a layer as a directory, and returns its tree.
fn as_directory(tar: &[u8], dir: &Path, lower: &Lower, trusted: bool) -> Result<StoredDir, String> {
    let (diff, replaced) = (dir.join("diff"), dir.join("replaced"));
    [dir, &diff, &replaced].into_iter().for_each(|path| fs::create_dir(path).unwrap());
    let rights = Rights { ids: process::ids(), trusted, rootless: false };
    let target = overlay::apply::Target {
        diff: Dir::open(&diff).unwrap(),
        replaced: &Dir::open(&replaced).unwrap(),
        space: &NoAccounting,
        rights,
        cores: &Cores::new(1),
        written: &AtomicU64::new(0),
        keep_replaced: false,
    };
    let mut reader = Reader::new(tar, (), Limits::default());
    let (mut applied, _) = overlay::apply::apply(&mut reader, target).map_err(|e| format!("{e:?}"))?;
    let diff_dir = Dir::open(&diff).unwrap();
    overlay::settle::settle(diff_dir, &mut applied, lower, &NoAccounting, rights)
        .map_err(|e| format!("{e:?}"))?;
    Ok(stored(&diff))
}

/// Applies and settles a layer as an image, and returns the trees of its images, topmost first.
fn as_image(tar: &[u8], dir: &Path, lower: &Lower) -> Result<Vec<StoredDir>, String> {
    fs::create_dir(dir).unwrap();
    let scratch = Dir::open(dir).unwrap();
    let new = |name| File::options().read(true).write(true).create_new(true).open(dir.join(name)).unwrap();
    let root = |name| StoredDir::Image(ImageNode::root(File::open(dir.join(name)).unwrap()).unwrap());
    let target = erofs_sink::apply::Target {
        image: Image::New(new("image")),
        dir: &scratch,
        space: &NoAccounting,
        options: Options::default(),
        written: &AtomicU64::new(0),
        keep_replaced: false,
    };
    let mut reader = Reader::new(tar, (), Limits::default());
    let (mut applied, filled) =
        erofs_sink::apply::apply(&mut reader, target).map_err(|e| format!("{e:?}"))?;
    filled.finish().unwrap();
    let planned = fixup::plan(&root("image"), &mut applied, lower, Times::Kept);
    let (_, fixup) = planned.map_err(|e| format!("{e:?}"))?;
    let mut trees = vec![root("image")];
    if let Some(fixup) = fixup {
        fixup.write(Image::New(new("fixup")), &scratch, &NoAccounting, Options::default()).unwrap();
        trees.insert(0, root("fixup"));
    }
    Ok(trees)
}

/// An entry that a mount of layers shows.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    file_type: FileType,
    metadata: Metadata,
    /// Content of a file, or target of a symbolic link.
    content: Vec<u8>,
    /// The first path of the same inode.
    first: Vec<u8>,
}

/// Returns everything that a mount of the layers shows.
fn mounted(layers: &Lower) -> BTreeMap<Vec<u8>, Shown> {
    let mut shown = BTreeMap::new();
    let mut first: HashMap<(usize, (u64, u64)), Vec<u8>> = HashMap::new();
    let mut pending = vec![Vec::new()];
    while let Some(at) = pending.pop() {
        let LowerEntry::Directory(parts) = layers.show(&at).unwrap() else { panic!("not a directory") };
        let top = layers.top(&at).unwrap().map(|part| (part.layer, part.metadata_self().unwrap()));
        let mut metadata = parts[0].metadata_self().unwrap();
        assert_eq!(top, Some((parts[0].layer, metadata.clone())), "{}", at.escape_ascii());
        if at.is_empty() {
            // The time of the root alone does not require a fixup.
            metadata.mtime = Timestamp::default();
        }
        for name in lower::names(&parts).unwrap() {
            let at = path::join(&at, &name);
            let LowerEntry::Other { dir, stat } = lower::child(&parts, &name).unwrap() else {
                pending.push(at);
                continue;
            };
            assert!(layers.top(&at).unwrap().is_none(), "{}", at.escape_ascii());
            let content = match stat.file_type {
                FileType::Symlink => dir.read_link(&name).unwrap(),
                _ => {
                    let mut content = Vec::new();
                    dir.open_file(&name).unwrap().read_to_end(&mut content).unwrap();
                    content
                }
            };
            let metadata = dir.metadata(&name, &stat).unwrap();
            let first = first.entry((dir.layer, stat.identity)).or_insert_with(|| at.clone()).clone();
            shown.insert(at, Shown { file_type: stat.file_type, metadata, content, first });
        }
        let file_type = FileType::Directory;
        shown.insert(at.clone(), Shown { file_type, metadata, content: Vec::new(), first: at });
    }
    shown
}

/// Settles a layer in both forms, and returns what a mount shows. Both must agree.
fn settled(base: &[Member], upper: &[Member], trusted: bool) -> Result<BTreeMap<Vec<u8>, Shown>, String> {
    let dir = tempfile::tempdir().unwrap();
    process::clear_umask();
    let at = |name: &str| dir.path().join(name);
    as_directory(&tar(base), &at("base"), &Lower::new([]), trusted)?;
    let base = || stored(&at("base/diff"));
    let lower = Lower::new([base()]);
    let tar = tar(upper);
    let directory = as_directory(&tar, &at("directory"), &lower, trusted);
    let image = as_image(&tar, &at("image"), &lower);
    let (directory, image) = match (directory, image) {
        (Ok(directory), Ok(image)) => (directory, image),
        (Err(fault), Err(other)) => {
            assert_eq!(fault, other);
            return Err(fault);
        }
        (Ok(_), Err(fault)) | (Err(fault), Ok(_)) => panic!("{fault}: {upper:?}"),
    };
    let directory = mounted(&Lower::new([directory, base()]));
    let image = mounted(&Lower::new(image.into_iter().chain([base()])));
    assert_eq!(directory, image, "{upper:?}");
    Ok(directory)
}

fn content(of: &BTreeMap<Vec<u8>, Shown>, path: &str) -> String {
    String::from_utf8(of[path.as_bytes()].content.clone()).unwrap()
}

#[test]
fn nothing_is_below_a_link_to_a_lower_file() {
    let base = [Regular("f".into())];
    let link = HardLink("a".into(), "f".into());
    let through = Symlink("s".into(), "a".into());
    for below in ["a", "s"] {
        let path = format!("{below}/x");
        for member in [Whiteout(path.clone()), Regular(path.clone()), HardLink("y".into(), path.clone())] {
            let fault = settled(&base, &[link.clone(), through.clone(), member], false).unwrap_err();
            assert!(fault.contains("ParentKind(\"a\")"), "{fault}");
        }
        let fault =
            settled(&base, &[link.clone(), through.clone(), Opaque(below.into())], false).unwrap_err();
        assert!(fault.contains("ParentKind(\"a\")"), "{fault}");
    }
}

#[test]
fn a_link_can_have_the_name_of_a_file_that_another_link_copies() {
    let base = ["d", "d/f", "g"].map(|path| match path {
        "d" => Directory("d".into(), 0o750),
        path => Regular(path.into()),
    });
    let link = |path: &str, target: &str| HardLink(path.into(), target.into());
    // The link "a" is made before its target is replaced, and sorts before and after it.
    for (first, target) in [("a", "d/f"), ("x", "d/f")] {
        let replaced = settled(&base, &[link(first, target), link("d/f", "g")], false).unwrap();
        assert_eq!(
            (content(&replaced, first), content(&replaced, "d/f")),
            ("content 1".into(), "content 2".into())
        );
        assert_ne!(replaced[first.as_bytes()].first, replaced[&b"d/f"[..]].first);
        let parent = settled(&base, &[link(first, target), link("d", "g")], false).unwrap();
        assert_eq!(
            (content(&parent, first), content(&parent, "d")),
            ("content 1".into(), "content 2".into())
        );
        assert!(!parent.contains_key(&b"d/f"[..]));
    }
}

fn name() -> impl Strategy<Value = String> {
    "[ab](/[abc]){0,2}".prop_map(String::from)
}

/// The members of a lower layer, and those of a layer that often links to them.
fn layers() -> impl Strategy<Value = (Vec<Member>, Vec<Member>)> {
    let base = proptest::collection::vec(name(), 1..8).prop_map(without_conflicts);
    let link = (any::<Index>(), name());
    let base = (base, proptest::option::weighted(0.3, link)).prop_map(|(paths, link)| {
        let mut members: Vec<Member> = paths.into_iter().map(Regular).collect();
        if let Some((at, target)) = link {
            let at = at.index(members.len());
            if let Regular(path) = members[at].clone() {
                members[at] = Symlink(path, target);
            }
        }
        members
    });
    base.prop_flat_map(|base| {
        let members = proptest::collection::vec(member(&base), 0..6);
        (Just(base), members)
    })
}

/// Returns members that often link to those of `base`.
fn member(base: &[Member]) -> impl Strategy<Value = Member> + use<> {
    let paths: Vec<String> = base
        .iter()
        .filter_map(|member| match member {
            Regular(path) | Symlink(path, _) => Some(path.clone()),
            _ => None,
        })
        .collect();
    let target = prop_oneof![3 => select(paths), 1 => name()];
    prop_oneof![
        2 => (name(), prop_oneof![Just(0o755), Just(0o700)]).prop_map(|(path, mode)| Directory(path, mode)),
        1 => name().prop_map(Regular),
        2 => (name(), name()).prop_map(|(path, target)| Symlink(path, target)),
        4 => (name(), target).prop_map(|(path, target)| HardLink(path, target)),
        1 => name().prop_map(Whiteout),
        1 => name().prop_map(Opaque),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn both_sinks_show_the_same((base, upper) in layers(), trusted in any::<bool>()) {
        // A layer that both sinks reject for the same reason is fine as well.
        let _ = settled(&base, &upper, trusted && process::ids().0 == 0);
    }
}
