//! Compares every tree that this crate resolves paths in with the kernel.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use proptest::prelude::*;
use tempfile::TempDir;

use super::{Entry, MAX_LOOKUPS, ResolveError, Resolved, Tree, resolve};
use crate::erofs::read::ImageNode;
use crate::erofs::{Options, TreeObserver, Writer};
use crate::fault::Fault;
use crate::limits::{MAX_DEPTH, NAME_MAX};
use crate::lower::Lower;
use crate::space::NoAccounting;
use crate::stored::StoredDir;
use crate::{erofs_sink, overlay, path};
use larder_sys::Dir;

/// The result of resolving a path, without the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Directory(Vec<u8>),
    /// An entry of another type, at the end of the path.
    Other(Vec<u8>),
    NotADirectory,
    Missing,
    Fault(Fault),
}

/// Resolves `path` in a tree of the crate.
pub(crate) fn answer<T: Tree>(tree: &mut T, path: &[u8]) -> Answer
where
    T::Error: Debug,
{
    match resolve(tree, path) {
        Ok(Resolved::Directory { path, .. }) => Answer::Directory(path),
        Ok(Resolved::Other { path, is_last: true, .. }) => Answer::Other(path),
        Ok(Resolved::Other { .. }) => Answer::NotADirectory,
        Ok(Resolved::Missing(path)) => {
            assert_eq!(path::clean(&path).as_ref(), Ok(&path), "a missing path is clean");
            Answer::Missing
        }
        Err(ResolveError::Path(fault)) => Answer::Fault(fault),
        Err(ResolveError::Tree(error)) => panic!("{error:?}"),
    }
}

/// Resolves `path` as the kernel does in a process whose root is `root`.
fn kernel(root: &Path, path: &[u8]) -> Answer {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    let dir = File::open(root).unwrap();
    let found = loop {
        match openat2(&dir, OsStr::from_bytes(path), how) {
            // A rename or mount elsewhere on the machine.
            Err(Errno::EAGAIN) => {}
            other => break other,
        }
    };
    match found {
        Ok(found) => {
            let name = format!("/proc/self/fd/{}", found.as_raw_fd());
            let full = fs::read_link(&name).unwrap();
            let at = full.strip_prefix(root).unwrap().to_owned().into_os_string().into_vec();
            if File::from(found).metadata().unwrap().is_dir() {
                Answer::Directory(at)
            } else {
                Answer::Other(at)
            }
        }
        Err(Errno::ENOENT) => Answer::Missing,
        Err(Errno::ENOTDIR) => Answer::NotADirectory,
        Err(Errno::ELOOP) => Answer::Fault(Fault::Loop),
        Err(Errno::ENAMETOOLONG) => Answer::Fault(Fault::NameTooLong),
        Err(other) => panic!("{other}: {}", path.escape_ascii()),
    }
}

/// Checks an answer against that of the kernel.
fn check(tree: &str, path: &[u8], ours: &Answer, kernel: &Answer) {
    let agrees = match (ours, kernel) {
        // The rest of a missing path is cleaned, because other layers can contain it. The kernel does not
        // read it.
        (Answer::Fault(Fault::Escapes | Fault::NameTooLong), Answer::Missing) => true,
        (ours, kernel) => ours == kernel,
    };
    assert!(agrees, "{tree}: {}: {ours:?}, kernel: {kernel:?}", path.escape_ascii());
}

struct Unobserved;

impl TreeObserver for Unobserved {
    fn advance(&mut self, _: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// Starts an image of the tree at `root`.
pub(crate) fn image<'a>(root: &Path, file: File, scratch: &Dir) -> Writer<'a> {
    let mut writer = Writer::new(file, scratch, &NoAccounting, Options::default()).unwrap();
    writer.tree(Dir::open(root).unwrap(), &mut Unobserved).unwrap();
    writer
}

fn stored(root: &Path) -> StoredDir {
    StoredDir::Directory(Dir::open(root).unwrap())
}

/// A tree on disk, and the same tree split over two layers at random.
struct Sample {
    dir: TempDir,
}

const PARTS: [&str; 3] = ["whole", "top", "base"];

impl Sample {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        PARTS.iter().for_each(|part| fs::create_dir(dir.path().join(part)).unwrap());
        Sample { dir }
    }

    fn part(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    /// Creates an entry in the whole tree, and in one of the layers. Does nothing if it or a parent exists as
    /// another entry.
    fn add(&self, path: &str, kind: &Kind, in_top: bool) {
        let whole = self.part("whole");
        let (parent, _) = path.rsplit_once('/').unwrap_or_default();
        let mut above = whole.clone();
        for name in parent.split('/') {
            above.push(name);
            if fs::symlink_metadata(&above).is_ok_and(|found| !found.is_dir()) {
                return;
            }
        }
        if fs::symlink_metadata(whole.join(path)).is_ok() {
            return;
        }
        for root in [whole, self.part(if in_top { "top" } else { "base" })] {
            fs::create_dir_all(root.join(parent)).unwrap();
            let at = root.join(path);
            match kind {
                Kind::Directory => fs::create_dir(at).unwrap(),
                Kind::File => drop(File::create(at).unwrap()),
                Kind::Symlink(target) => symlink(target, at).unwrap(),
            }
        }
    }

    /// Compares the answers of all trees with those of the kernel.
    fn check(&self, paths: &[Vec<u8>]) {
        let whole = self.part("whole");
        let kernel: Vec<Answer> = paths.iter().map(|path| kernel(&whole, path)).collect();
        let check_all = |tree: &str, answers: Vec<Answer>| {
            for ((path, ours), kernel) in paths.iter().zip(&answers).zip(&kernel) {
                check(tree, path, ours, kernel);
            }
        };
        let of_lower = |lower: Lower| paths.iter().map(|path| answer(&mut &lower, path)).collect();
        check_all("a lower directory", of_lower(Lower::new([stored(&whole)])));
        let layers = [stored(&self.part("top")), stored(&self.part("base"))];
        check_all("two lower layers", of_lower(Lower::new(layers)));

        let scratch = Dir::open(self.dir.path()).unwrap();
        let open = |name: &str| {
            File::options().read(true).write(true).create(true).truncate(true).open(self.part(name)).unwrap()
        };
        image(&whole, open("image"), &scratch).finish().unwrap();
        let root = ImageNode::root(File::open(self.part("image")).unwrap()).unwrap();
        check_all("a lower image", of_lower(Lower::new([StoredDir::Image(root)])));

        let overlay = |make| overlay::answers(Dir::open(&whole).unwrap(), paths, make);
        let erofs = |make| {
            let writer = image(&whole, open("unfinished"), &scratch);
            erofs_sink::apply::answers(writer, paths, make)
        };
        check_all("the overlay sink", overlay(false));
        check_all("the EROFS sink", erofs(false));
        self.check_creation(paths, erofs(true), overlay(true));
    }

    /// Checks the answers of trees that create missing directories.
    fn check_creation(&self, paths: &[Vec<u8>], erofs: Vec<Answer>, overlay: Vec<Answer>) {
        assert_eq!(erofs, overlay, "{paths:?}");
        for (path, ours) in paths.iter().zip(&overlay) {
            assert_ne!(*ours, Answer::Missing, "{}", path.escape_ascii());
            check("the overlay sink, after creation", path, ours, &kernel(&self.part("whole"), path));
        }
    }
}

#[derive(Clone, Debug)]
enum Kind {
    Directory,
    File,
    Symlink(String),
}

/// Paths that often name existing entries: absolute or relative, with `.`, `..`, empty and overlong
/// components.
fn wanted() -> impl Strategy<Value = String> {
    let component = prop_oneof![
        12 => "[abc]".prop_map(String::from),
        4 => Just("..".to_owned()),
        1 => Just(".".to_owned()),
        1 => Just(String::new()),
        1 => Just("n".repeat(NAME_MAX)),
        1 => Just("n".repeat(NAME_MAX + 1)),
    ];
    let components = proptest::collection::vec(component, 1..6);
    (components, any::<bool>()).prop_map(|(components, is_absolute)| {
        let path = components.join("/");
        let slash = if is_absolute || path.is_empty() { "/" } else { "" };
        format!("{slash}{path}")
    })
}

fn entries() -> impl Strategy<Value = Vec<(String, Kind, bool)>> {
    let kind = prop_oneof![
        2 => Just(Kind::Directory),
        1 => Just(Kind::File),
        3 => wanted().prop_map(Kind::Symlink),
    ];
    proptest::collection::vec(("[abc](/[abc]){0,2}", kind, any::<bool>()), 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn every_tree_resolves_paths_as_the_kernel_does(
        entries in entries(),
        paths in proptest::collection::vec(wanted(), 8..24),
    ) {
        let sample = Sample::new();
        entries.iter().for_each(|(path, kind, in_top)| sample.add(path, kind, *in_top));
        sample.check(&paths.into_iter().map(String::into_bytes).collect::<Vec<_>>());
    }
}

#[test]
fn as_many_links_are_followed_as_in_the_kernel() {
    let sample = Sample::new();
    sample.add("end", &Kind::Directory, false);
    for number in 0..42 {
        let target = if number == 0 { "end".to_owned() } else { format!("/{}", number - 1) };
        sample.add(&number.to_string(), &Kind::Symlink(target), number % 2 == 0);
    }
    sample.check(&["39", "40", "39/../39", "19/../19"].map(Vec::from));
    assert_eq!(kernel(&sample.part("whole"), b"39"), Answer::Directory(b"end".to_vec()));
    assert_eq!(kernel(&sample.part("whole"), b"40"), Answer::Fault(Fault::Loop));
}

#[test]
fn the_path_of_a_file_has_no_slash_at_the_end() {
    let sample = Sample::new();
    sample.add("file", &Kind::File, true);
    sample.add("link", &Kind::Symlink("file/".to_owned()), false);
    sample.check(&["file", "file/", "file/.", "file/..", "file/x", "link"].map(Vec::from));
}

/// A tree in memory that counts its lookups. Every name that is no symbolic link is a directory.
#[derive(Default)]
struct Memory {
    links: BTreeMap<Vec<u8>, Vec<u8>>,
    lookups: usize,
}

impl Tree for Memory {
    type Dir = ();
    type Error = Infallible;

    fn directory(&mut self, path: &[u8]) -> Result<(), Infallible> {
        self.lookups += path::components(path).count();
        Ok(())
    }

    fn entry(&mut self, (): &(), name: &[u8], at: &[u8]) -> Result<Entry<()>, Infallible> {
        assert_eq!(path::split(at).1, name);
        self.lookups += 1;
        Ok(self.links.get(at).map_or(Entry::Directory(()), |target| Entry::Symlink(target.clone())))
    }
}

#[test]
fn the_depth_is_limited() {
    let deepest = "d/".repeat(MAX_DEPTH);
    assert!(matches!(answer(&mut Memory::default(), deepest.as_bytes()), Answer::Directory(_)));
    let up = format!("{deepest}../d");
    assert!(matches!(answer(&mut Memory::default(), up.as_bytes()), Answer::Directory(_)));
    let deeper = format!("{deepest}d");
    assert_eq!(answer(&mut Memory::default(), deeper.as_bytes()), Answer::Fault(Fault::TooDeep));
}

#[test]
fn the_work_for_a_path_is_limited() {
    // Forty links of the length that the kernel accepts are within the limit.
    let mut honest = Memory::default();
    for number in 0..40 {
        let last = if number == 39 { "d".to_owned() } else { format!("l{}", number + 1) };
        let target = "d/".repeat(2000) + &"../".repeat(2000) + &last;
        honest.links.insert(format!("l{number}").into(), target.into());
    }
    assert!(matches!(answer(&mut honest, b"l0"), Answer::Directory(_)));
    // Each step up is followed by a name, so the directory above must be found again.
    let mut hostile = Memory::default();
    let path = "d/".repeat(1000) + &"../../d/".repeat(900);
    assert!(matches!(answer(&mut hostile, path.as_bytes()), Answer::Fault(Fault::TooManyLookups { .. })));
    assert!(hostile.lookups <= MAX_LOOKUPS);
}
