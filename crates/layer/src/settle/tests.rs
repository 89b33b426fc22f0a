//! Tests of the planner on layers in memory, over lower layers on disk.

mod sinks;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use proptest::prelude::*;
use tempfile::TempDir;

use super::{OwnTree, Plan, plan};
use crate::applied::{Directory, LowerLink};
use crate::error::{Error, Fault};
use crate::lower::Lower;
use crate::metadata::Metadata;
use crate::path;
use crate::stored::StoredDir;
use larder_sys::Dir;

/// A layer in memory, in directory form. `AS_IMAGE` masks as an image does.
#[derive(Clone, Debug, Default)]
struct Layer<const AS_IMAGE: bool> {
    directories: BTreeMap<Vec<u8>, Directory>,
    links: BTreeMap<Vec<u8>, LowerLink>,
    files: BTreeSet<Vec<u8>>,
    has_attributes: bool,
}

impl<const AS_IMAGE: bool> OwnTree for Layer<AS_IMAGE> {
    const MASKS_OPAQUE: bool = !AS_IMAGE;

    fn contains(&mut self, path: &[u8]) -> Result<bool, Error> {
        assert!(self.directories.contains_key(path::split(path).0), "the parent is a directory of the layer");
        Ok(self.files.contains(path))
    }

    fn has_attribute(&self, path: &[u8]) -> bool {
        assert!(!path.is_empty(), "overlayfs ignores the attribute of the root");
        self.has_attributes
    }
}

impl<const AS_IMAGE: bool> Layer<AS_IMAGE> {
    fn new() -> Self {
        let root = BTreeMap::from([(Vec::new(), Directory::default())]);
        Layer { directories: root, has_attributes: true, ..Layer::default() }
    }

    fn directory(mut self, path: &str, directory: Directory) -> Self {
        self.directories.insert(path.into(), directory);
        self
    }

    /// Adds an entry that is not a directory.
    fn file(mut self, path: &str) -> Self {
        self.files.insert(path.into());
        self
    }

    fn link(mut self, path: &str, target: &str) -> Self {
        let link = LowerLink { target: target.into(), metadata: Metadata::implied() };
        self.links.insert(path.into(), link);
        self
    }

    fn plan(&self, lower: &Path) -> Result<Plan, Error> {
        let lower = Lower::new([StoredDir::Directory(Dir::open(lower).unwrap())]);
        plan(&self.directories, self.links.clone(), &lower, &mut self.clone())
    }
}

const IMPLIED: Directory = Directory { metadata: None, opaque: false, recreated: false };
const OPAQUE: Directory = Directory { opaque: true, ..IMPLIED };
const RECREATED: Directory = Directory { recreated: true, ..IMPLIED };

/// Creates the files of a lower layer, with their parents.
fn lower(files: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in files {
        fs::create_dir_all(dir.path().join(file).parent().unwrap()).unwrap();
        fs::write(dir.path().join(file), "").unwrap();
    }
    dir
}

fn names(paths: &[Vec<u8>]) -> Vec<&str> {
    paths.iter().map(|path| std::str::from_utf8(path).unwrap()).collect()
}

fn inherited(plan: &Plan) -> Vec<&str> {
    plan.inherited.keys().map(|path| std::str::from_utf8(path).unwrap()).collect()
}

#[test]
fn links_to_one_file_share_a_copy() {
    let lower = lower(&["d/e/f", "g"]);
    symlink("d/e", lower.path().join("s")).unwrap();
    fs::set_permissions(lower.path().join("d/e/f"), fs::Permissions::from_mode(0o4711)).unwrap();
    let layer = Layer::<false>::new().link("a", "d/e/f").link("b", "g").link("c", "s/f");
    let plan = layer.plan(lower.path()).unwrap();
    let copies: Vec<_> = plan.copies.iter().map(|copy| (copy.path.as_slice(), copy.keeps_path)).collect();
    assert_eq!(copies, [(&b"d/e/f"[..], true), (b"g", true)]);
    assert_eq!(plan.copies[0].metadata.mode, 0o4711);
    let links: Vec<_> = plan.links.iter().map(|link| (link.path.as_slice(), link.copy)).collect();
    assert_eq!(links, [(&b"a"[..], 0), (b"b", 1), (b"c", 0)]);
    assert_eq!(inherited(&plan), ["", "d", "d/e"]);
    assert_eq!(plan.settled().copied_up, ["d/e/f", "g"]);
}

#[test]
fn a_copy_keeps_its_path_only_if_that_is_visible() {
    let lower = lower(&["d/f", "other"]);
    let layer = || Layer::<false>::new().link("a", "d/f");
    for (layer, want) in [
        (layer(), true),
        (layer().directory("d", IMPLIED), true),
        (layer().directory("d", IMPLIED).file("d/g"), true),
        (layer().file("d"), false),
        (layer().directory("d", IMPLIED).file("d/f"), false),
        (layer().directory("d", IMPLIED).directory("d/f", IMPLIED), false),
        (layer().directory("d", OPAQUE), false),
        (layer().directory("d", RECREATED), false),
        (layer().directory("", OPAQUE), false),
        // Another link replaces the original, or its directory.
        (layer().directory("d", IMPLIED).link("d/f", "other"), false),
        (layer().link("d", "other"), false),
    ] {
        let plan = layer.plan(lower.path()).unwrap();
        assert_eq!(plan.copies[0].keeps_path, want, "{layer:?}");
        if want {
            assert!(plan.inherited.contains_key(&b"d"[..]), "{layer:?}");
        }
    }
}

#[test]
fn a_link_to_its_own_path_is_a_copy() {
    let lower = lower(&["d/f"]);
    let plan = Layer::<false>::new().directory("d", IMPLIED).link("d/f", "d/f").plan(lower.path()).unwrap();
    assert_eq!((plan.copies.len(), plan.links.len()), (1, 1));
    assert_eq!(plan.links[0].path, b"d/f");
}

#[test]
fn a_link_without_a_target_is_hostile() {
    let lower = lower(&["d/f"]);
    for target in ["nowhere", "d", "d/f/g"] {
        match Layer::<false>::new().link("a", target).plan(lower.path()) {
            Err(Error::Hostile { path, fault: Fault::LinkMissing(missing) }) => {
                assert_eq!((path.as_str(), missing.as_str()), ("a", target));
            }
            other => panic!("{target}: {other:?}"),
        }
    }
}

#[test]
fn opaque_directories_have_an_attribute_or_whiteouts() {
    let lower = lower(&["d/a", "d/b", "d/c", "d/sub/x", "d/gone/y", "e/z"]);
    let layer = Layer::<false>::new()
        .directory("d", OPAQUE)
        .directory("d/sub", OPAQUE)
        .directory("d/sub/own", IMPLIED)
        .file("d/b")
        .link("d/c", "e/z");
    let marked = layer.plan(lower.path()).unwrap();
    assert_eq!(names(&marked.attributes), ["d", "d/sub"]);
    assert!(marked.whiteouts.is_empty() && marked.masked.is_empty());
    let plan = Layer { has_attributes: false, ..layer }.plan(lower.path()).unwrap();
    assert_eq!(names(&plan.whiteouts), ["d/a", "d/gone", "d/sub/x"]);
    assert_eq!(plan.settled().opaque_as_whiteouts, ["d", "d/sub"]);
    assert!(plan.attributes.is_empty());
}

#[test]
fn the_root_never_has_the_attribute() {
    let lower = lower(&["a", "d/b", "d/e/c"]);
    fn layer<const AS_IMAGE: bool>() -> Layer<AS_IMAGE> {
        Layer::new().directory("", OPAQUE).directory("d", OPAQUE).directory("d/e", IMPLIED)
    }
    let plan = layer::<true>().plan(lower.path()).unwrap();
    assert_eq!(names(&plan.whiteouts), ["a"]);
    assert_eq!((names(&plan.masked), names(&plan.attributes)), (vec![""], vec!["d"]));
    let plan = layer::<false>().plan(lower.path()).unwrap();
    assert_eq!(names(&plan.whiteouts), ["a", "d/b", "d/e/c"]);
    assert_eq!((names(&plan.masked), names(&plan.attributes)), (vec![""], vec!["d"]));
}

#[test]
fn only_implied_directories_that_show_the_lower_one_inherit() {
    let lower = lower(&["implied/x", "described/x", "opaque/below/x", "recreated/x", "file"]);
    let described = Directory { metadata: Some(Metadata::implied()), ..IMPLIED };
    let layer = Layer::<true>::new()
        .directory("implied", IMPLIED)
        .directory("described", described)
        .directory("opaque", OPAQUE)
        .directory("opaque/below", IMPLIED)
        .directory("recreated", RECREATED)
        .directory("file", IMPLIED)
        .directory("new", IMPLIED);
    let plan = layer.plan(lower.path()).unwrap();
    assert_eq!(inherited(&plan), ["", "implied", "opaque"]);
    assert_eq!(plan.settled().inherited, [".", "implied", "opaque"]);
}

/// A lower layer, and a layer whose directories, files and links have names of one letter.
fn trees() -> impl Strategy<Value = (Vec<String>, Layer<false>)> {
    let paths = || proptest::collection::vec("[abc](/[abc]){0,2}", 0..8);
    let flags = proptest::collection::vec(any::<(bool, bool, u8)>(), 8);
    (paths(), paths(), flags, any::<bool>()).prop_map(|(below, own, flags, has_attributes)| {
        let lower = without_conflicts(below);
        let mut layer = Layer { has_attributes, ..Layer::new() };
        for (path, (opaque, recreated, kind)) in without_conflicts(own).iter().zip(flags) {
            for (at, _) in path.match_indices('/') {
                layer = layer.directory(&path[..at], Directory { metadata: None, opaque, recreated });
            }
            layer = match lower.get(usize::from(kind) % (lower.len() + 1)) {
                Some(target) => layer.link(path, target),
                None => layer.file(path),
            };
        }
        let root = Directory { opaque: layer.files.len() % 4 == 3, ..IMPLIED };
        (lower, layer.directory("", root))
    })
}

/// Removes paths above or below an earlier one.
fn without_conflicts(paths: Vec<String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    let inside = |a: &str, b: &str| a == b || a.starts_with(&format!("{b}/"));
    for path in paths {
        if !kept.iter().any(|other| inside(&path, other) || inside(other, &path)) {
            kept.push(path);
        }
    }
    kept
}

/// Returns the path and all paths above it, without the root.
fn with_parents(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let first = (!path.is_empty()).then_some(path);
    std::iter::successors(first, |path| Some(path::split(path).0).filter(|above| !above.is_empty()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// A mount of the settled layer shows the names that applying both layers in one directory would give.
    #[test]
    fn a_mount_shows_what_sequential_application_gives((below, layer) in trees()) {
        let files: Vec<&str> = below.iter().map(String::as_str).collect();
        let lower = lower(&files);
        let plan = layer.plan(lower.path()).unwrap();
        let lower_names: BTreeSet<&[u8]> = files.iter().flat_map(|file| with_parents(file.as_bytes())).collect();
        let is_own_file = |path: &[u8]| layer.files.contains(path) || layer.links.contains_key(path);
        let hides = |path: &[u8]| layer.directories.get(path).is_some_and(Directory::hides_lower);
        let above = |path: &[u8]| path::split(path).0.to_vec();
        let own: BTreeSet<&[u8]> = layer.files.iter().chain(layer.links.keys()).chain(layer.directories.keys())
            .map(Vec::as_slice).filter(|path| !path.is_empty()).collect();

        // Sequential application removes what the layer hides, and adds its entries.
        let root_hides = hides(b"");
        let remains = |path: &[u8]| {
            !root_hides && with_parents(path).all(|q| !is_own_file(q)) && with_parents(&above(path)).all(|q| !hides(q))
        };
        let mut expected: BTreeSet<&[u8]> = lower_names.iter().copied().filter(|path| remains(path)).collect();
        let replaced: Vec<&[u8]> = layer.directories.keys().map(Vec::as_slice)
            .filter(|path| files.iter().any(|file| file.as_bytes() == *path)).collect();
        expected.extend(&own);

        // The mount merges the settled layer with the lower one.
        let whiteouts: BTreeSet<&[u8]> = plan.whiteouts.iter().map(Vec::as_slice).collect();
        prop_assert_eq!(whiteouts.len(), plan.whiteouts.len(), "no whiteout is planned twice");
        prop_assert!(whiteouts.is_disjoint(&own), "no whiteout replaces an entry");
        let copies: Vec<&[u8]> =
            plan.copies.iter().filter(|copy| copy.keeps_path).map(|copy| copy.path.as_slice()).collect();
        let marked = |path: &[u8]| plan.attributes.iter().any(|marked| marked == path);
        let shows_lower = |path: &[u8]| {
            with_parents(path).all(|q| !is_own_file(q) && !whiteouts.contains(q) && !copies.contains(&q))
                && with_parents(&above(path)).all(|q| !marked(q))
        };
        let mut mounted: BTreeSet<&[u8]> = lower_names.iter().copied().filter(|path| shows_lower(path)).collect();
        mounted.extend(&own);
        mounted.extend(copies.iter().flat_map(|copy| with_parents(copy)));
        prop_assert_eq!(&mounted, &expected, "{:?}", plan);

        // A copy keeps its path exactly if sequential application leaves the original there.
        for copy in &plan.copies {
            let path = copy.path.as_slice();
            let remains = remains(path) && !replaced.contains(&path);
            prop_assert!(copy.keeps_path == remains, "{}: {:?}", path.escape_ascii(), plan);
        }
    }
}
