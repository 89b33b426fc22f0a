//! The rules of settling, tested on disk.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use super::{Options, build, chain, diff};
use crate::verify;
use larder_testing::layer::{BuiltLayer, LayerBuilder, SparseForm};

fn sealed(images: &[&[BuiltLayer]], options: &Options) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), images, options).unwrap();
    verify::verify(dir.path()).unwrap();
    dir
}

fn opaque(path: &Path) -> bool {
    let dir = larder_sys::Dir::open(path).unwrap();
    larder_sys::xattr::get(&dir, b"trusted.overlay.opaque").unwrap().is_some()
}

fn is_whiteout(path: &Path) -> bool {
    let meta = fs::symlink_metadata(path).unwrap();
    meta.file_type().is_char_device() && meta.rdev() == 0
}

fn base() -> BuiltLayer {
    LayerBuilder::new()
        .owner(7, 8)
        .mode(0o751)
        .dir("./")
        .mode(0o700)
        .dir("data")
        .file("data/a", "a")
        .file("data/b", "b")
        .dir("data/sub")
        .file("data/sub/c", "c")
        .symlink("run", "data")
        .mode(0o4755)
        .file("bin", "binary")
        .gzip()
}

#[test]
fn every_kind_of_member_survives() {
    let layer = LayerBuilder::new()
        .dir("d")
        .xattr("user.note", "hello")
        .file("d/f", vec![b'x'; 5000])
        .hardlink("d/g", "d/f")
        .symlink("s", "d/f")
        .char_device("null", 1, 3)
        .block_device("disk", 8, 1)
        .fifo("pipe")
        .owner(1000, 2000)
        .mode(0o6755)
        .file("suid", "x")
        .pax("mtime", "1234.000000567")
        .file("when", "")
        .file("not-utf8-\u{fffd}", "")
        .file(b"raw-\xff\xfe".as_slice(), "raw")
        .gzip();
    let layers = [layer];
    let dir = sealed(&[&layers], &Options::default());
    let root = diff(dir.path(), &chain(&layers)[0]);
    let meta = |name: &str| fs::symlink_metadata(root.join(name)).unwrap();
    assert_eq!(meta("d/f").ino(), meta("d/g").ino());
    assert_eq!(fs::read_link(root.join("s")).unwrap(), Path::new("d/f"));
    assert!(meta("null").file_type().is_char_device() && meta("disk").file_type().is_block_device());
    assert!(meta("pipe").file_type().is_fifo());
    assert_eq!((meta("suid").mode() & 0o7777, meta("suid").uid(), meta("suid").gid()), (0o6755, 1000, 2000));
    assert_eq!((meta("when").mtime(), meta("when").mtime_nsec()), (1234, 567));
    // No member describes the root.
    assert_eq!((meta("").mode() & 0o7777, meta("").mtime()), (0o755, 0));
}

#[test]
fn an_implied_directory_takes_after_the_lower_one() {
    let upper = LayerBuilder::new().file("data/new", "n").file("fresh/x", "x").gzip();
    let layers = [base(), upper];
    let dir = sealed(&[&layers], &Options::default());
    let root = diff(dir.path(), &chain(&layers)[1]);
    let data = fs::metadata(root.join("data")).unwrap();
    assert_eq!((data.mode() & 0o7777, data.uid(), data.gid()), (0o700, 7, 8));
    let fresh = fs::metadata(root.join("fresh")).unwrap();
    assert_eq!((fresh.mode() & 0o7777, fresh.uid(), fresh.mtime()), (0o755, 0, 0));
    let top = fs::metadata(&root).unwrap();
    assert_eq!((top.mode() & 0o7777, top.uid()), (0o751, 7));
}

#[test]
fn a_lower_link_in_the_place_of_a_parent_is_replaced() {
    let upper = LayerBuilder::new().file("run/x", "x").gzip();
    let layers = [base(), upper];
    let dir = sealed(&[&layers], &Options::default());
    let root = diff(dir.path(), &chain(&layers)[1]);
    assert!(fs::symlink_metadata(root.join("run")).unwrap().is_dir());
    assert!(!root.join("data").exists());
}

#[test]
fn a_link_of_the_layer_itself_is_followed_inside_it() {
    let layer = LayerBuilder::new()
        .symlink("var/run", "/run")
        .file("var/run/pid", "1")
        .symlink("up", "../../../run/deep")
        .file("up/x", "x")
        .gzip();
    let layers = [layer];
    let dir = sealed(&[&layers], &Options::default());
    let root = diff(dir.path(), &chain(&layers)[0]);
    assert_eq!(fs::read(root.join("run/pid")).unwrap(), b"1");
    assert_eq!(fs::read(root.join("run/deep/x")).unwrap(), b"x");
}

#[test]
fn whiteouts_and_what_replaces_them_in_either_order() {
    for trusted in [true, false] {
        let before = LayerBuilder::new().whiteout("data").dir("data").file("data/n", "n").gzip();
        let after =
            LayerBuilder::new().dir("data").file("data/n", "n").whiteout("data").whiteout("bin").gzip();
        let implied = LayerBuilder::new().whiteout("data").file("data/n", "n").whiteout("gone").gzip();
        for upper in [before, after, implied] {
            let layers = [base(), upper];
            let dir = sealed(&[&layers], &Options { trusted, ..Options::default() });
            let root = diff(dir.path(), &chain(&layers)[1]);
            assert_eq!(opaque(&root.join("data")), trusted);
            if !trusted {
                for name in ["a", "b", "sub"] {
                    assert!(is_whiteout(&root.join("data").join(name)), "{name}");
                }
            }
            assert_eq!(fs::read(root.join("data/n")).unwrap(), b"n");
        }
    }
}

#[test]
fn an_opaque_directory_without_its_attribute_hides_by_whiteouts() {
    let upper = LayerBuilder::new().opaque("data").file("data/sub/d", "d").gzip();
    let layers = [base(), upper];
    let dir = sealed(&[&layers], &Options { trusted: false, ..Options::default() });
    let root = diff(dir.path(), &chain(&layers)[1]);
    assert!(is_whiteout(&root.join("data/a")) && is_whiteout(&root.join("data/sub/c")));
    assert_eq!(fs::metadata(root.join("data")).unwrap().uid(), 7, "the directory itself stays");
}

#[test]
fn an_opaque_root_hides_by_whiteouts_because_overlayfs_ignores_its_attribute() {
    let upper = LayerBuilder::new().opaque("").file("data/n", "n").gzip();
    let layers = [base(), upper];
    let dir = sealed(&[&layers], &Options::default());
    let root = diff(dir.path(), &chain(&layers)[1]);
    assert!(is_whiteout(&root.join("bin")) && is_whiteout(&root.join("data/a")));
    assert!(root.join("data/n").is_file());
}

#[test]
fn a_hard_link_to_a_lower_file_copies_it_up_with_both_names() {
    let upper = LayerBuilder::new()
        .owner(7, 8)
        .mode(0o4755)
        .hardlink("tools/bin2", "bin")
        .mode(0o4755)
        .hardlink("bin3", "bin")
        .hardlink("through", "run/a")
        .gzip();
    let layers = [base(), upper];
    let dir = sealed(&[&layers], &Options::default());
    let root = diff(dir.path(), &chain(&layers)[1]);
    let meta = |name: &str| fs::symlink_metadata(root.join(name)).unwrap();
    assert_eq!(fs::read(root.join("tools/bin2")).unwrap(), b"binary");
    assert_eq!(meta("bin").ino(), meta("tools/bin2").ino());
    assert_eq!(meta("bin").ino(), meta("bin3").ino());
    assert_eq!((meta("bin").mode() & 0o7777, meta("bin").uid()), (0o4755, 7));
    assert_eq!(meta("through").ino(), meta("data/a").ino());
    assert_eq!(meta("data").mode() & 0o7777, 0o700, "made on the way and inherited");
}

#[test]
fn a_copy_does_not_bring_back_what_the_layer_hides() {
    let new = LayerBuilder::new;
    let whited = new().hardlink("x", "data/a").whiteout("data");
    let opaque = new().hardlink("x", "data/a").opaque("data");
    let linked = new().dir("other").hardlink("x", "data/a").symlink("data", "other");
    let filed = new().hardlink("x", "data/a").file("data", "now a file");
    for (name, upper) in [("whited", whited), ("opaque", opaque), ("linked", linked), ("filed", filed)] {
        let layers = [base(), upper.gzip()];
        let dir = sealed(&[&layers], &Options::default());
        let root = diff(dir.path(), &chain(&layers)[1]);
        assert_eq!(fs::read(root.join("x")).unwrap(), b"a", "{name}");
        assert!(fs::symlink_metadata(root.join("data/a")).is_err(), "{name}");
        assert!(fs::symlink_metadata(root.join("other/a")).is_err(), "{name}");
    }
}

#[test]
fn a_second_name_keeps_the_capabilities_of_the_first() {
    let capability = [1u8, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let layer = LayerBuilder::new()
        .xattr("security.capability", capability)
        .file("ping", "ping")
        .hardlink("pong", "ping")
        .owner(5, 5)
        .xattr("security.capability", capability)
        .file("gone", "gone")
        .owner(6, 6)
        .hardlink("went", "gone");
    let layers = [layer.gzip()];
    let dir = sealed(&[&layers], &Options::default());
    let root = larder_sys::Dir::open(&diff(dir.path(), &chain(&layers)[0])).unwrap();
    let names = |name: &[u8]| larder_sys::xattr::all_at(&root, name).unwrap().len();
    assert_eq!((names(b"pong"), names(b"went")), (1, 0));
}

#[test]
fn attributes_unknown_to_linux_are_skipped_and_recorded() {
    let layer = LayerBuilder::new().xattr("com.apple.provenance", "x").file("f", "f").gzip();
    let dir = tempfile::tempdir().unwrap();
    let sealed = build(dir.path(), &[&[layer]], &Options::default()).unwrap();
    verify::verify(dir.path()).unwrap();
    assert_eq!(sealed.content.layers[0].lost[0].what, "xattr com.apple.provenance");
}

#[test]
fn times_beyond_the_file_system_are_recorded() {
    let layer = LayerBuilder::new().pax("mtime", "99999999999").file("f", "f").gzip();
    let dir = tempfile::tempdir().unwrap();
    let sealed = build(dir.path(), &[&[layer]], &Options::default()).unwrap();
    verify::verify(dir.path()).unwrap();
    let layer = &sealed.content.layers[0];
    let file = dir.path().join("overlay").join(layer.chain_id.hex()).join("diff/f");
    // ext4 and xfs end before the year 2500; btrfs and tmpfs do not.
    let is_kept = std::os::unix::fs::MetadataExt::mtime(&std::fs::metadata(file).unwrap()) == 99_999_999_999;
    let lost: Vec<&str> = layer.lost.iter().map(|lost| lost.what.as_str()).collect();
    assert_eq!(lost, if is_kept { vec![] } else { vec!["mtime"] });
}

fn occupied(dir: &Path) -> u64 {
    larder_sys::space::occupied(&larder_sys::Dir::open(dir).unwrap()).unwrap()
}

#[test]
fn the_cap_holds_for_attributes_of_directories_and_for_copies_of_holes() {
    let mut many = LayerBuilder::new();
    for number in 0..400 {
        many = many.xattr("user.a", vec![b'x'; 1500]).dir(format!("d{number}"));
    }
    let hole: &[(u64, &[u8])] = &[(20 << 20, b"x")];
    let below = LayerBuilder::new().sparse(SparseForm::Pax10, "sparse", 30 << 20, hole).gzip();
    let above = LayerBuilder::new().hardlink("again", "sparse").gzip();
    for (layers, cap) in [(vec![many.gzip()], 2500 << 10), (vec![below, above], 1 << 20)] {
        let dir = tempfile::tempdir().unwrap();
        let built = build(dir.path(), &[&layers], &Options { size: cap, ..Options::default() });
        assert!(occupied(dir.path()) <= cap, "{} bytes under a cap of {cap}", occupied(dir.path()));
        if layers.len() == 2 {
            built.unwrap();
        }
    }
}

#[test]
fn content_that_is_replaced_gives_its_room_back() {
    let mut layer = LayerBuilder::new();
    for byte in 0..6u8 {
        layer = layer.file("a", vec![byte; 1 << 20]);
    }
    let next = LayerBuilder::new().file("b", vec![1; 5 << 20]).gzip();
    let dir = tempfile::tempdir().unwrap();
    let options = Options { size: 9 << 20, ..Options::default() };
    build(dir.path(), &[&[layer.gzip(), next]], &options).unwrap();
    assert!(occupied(dir.path()) <= options.size);
}

#[test]
fn later_members_replace_earlier_ones_whatever_their_type() {
    let layer = LayerBuilder::new()
        .file("f", "one")
        .file("f", "two, longer")
        .file("f", "three")
        .file("d/x", "x")
        .file("d/y/z", "z")
        .symlink("d", "f")
        .file("l", "kept under another name")
        .hardlink("m", "l")
        .symlink("l", "m")
        .file("n", "plain")
        .dir("n")
        .file("n/inside", "inside")
        .fifo("p")
        .file("p", "no pipe")
        .gzip();
    let layers = [layer];
    let dir = sealed(&[&layers], &Options::default());
    let root = diff(dir.path(), &chain(&layers)[0]);
    assert_eq!(fs::read(root.join("f")).unwrap(), b"three");
    assert!(fs::symlink_metadata(root.join("d")).unwrap().is_symlink());
    assert_eq!(fs::read(root.join("m")).unwrap(), b"kept under another name");
    assert_eq!(fs::read(root.join("n/inside")).unwrap(), b"inside");
    assert_eq!(fs::read(root.join("p")).unwrap(), b"no pipe");
}

#[test]
fn sparse_files_keep_their_holes() {
    for form in SparseForm::ALL {
        let content: &[(u64, &[u8])] = &[(0, b"head"), (1 << 20, b"middle"), (3 << 20, b"x")];
        let layer = LayerBuilder::new().sparse(form, "s", 4 << 20, content).file("after", "a").gzip();
        let layers = [layer];
        let dir = sealed(&[&layers], &Options::default());
        let path = diff(dir.path(), &chain(&layers)[0]).join("s");
        let meta = fs::metadata(&path).unwrap();
        assert_eq!(meta.len(), 4 << 20);
        assert!(meta.blocks() * 512 <= 64 << 10, "{form:?} occupies {} bytes", meta.blocks() * 512);
        let bytes = fs::read(&path).unwrap();
        assert_eq!(&bytes[1 << 20..(1 << 20) + 6], b"middle");
    }
}

#[test]
fn paths_longer_than_path_max() {
    let deep = vec!["component-of-thirty-two-characters"; 150].join("/");
    assert!(deep.len() > 4096);
    let layer = LayerBuilder::new()
        .pax("path", format!("{deep}/file"))
        .file("short", "deep")
        .pax("path", format!("{deep}/again"))
        .file("short", "again")
        .gzip();
    let layers = [layer];
    sealed(&[&layers], &Options::default());
}

#[test]
fn one_change_set_under_two_parents() {
    let shared = LayerBuilder::new().file("data/new", "n").dir("etc").file("etc/x", "x").gzip();
    let other = LayerBuilder::new().owner(9, 9).mode(0o711).dir("data").zstd();
    let (one, two) = ([base(), shared.clone()], [other, shared]);
    let dir = sealed(&[&one, &two], &Options::default());
    let owner =
        |layers: &[BuiltLayer]| fs::metadata(diff(dir.path(), &chain(layers)[1]).join("data")).unwrap().uid();
    assert_eq!((owner(&one), owner(&two)), (7, 9));
}
