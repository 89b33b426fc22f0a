//! Malicious layers: every member here fails its layer with its name in the message, and nothing outside the
//! volume is changed.

use super::{Options, build};
use larder_model::class::Class;
use larder_testing::layer::LayerBuilder;

fn refused(name: &str, layer: LayerBuilder, words: &str) {
    let outer = tempfile::tempdir().unwrap();
    let secret = outer.path().join("secret");
    std::fs::write(&secret, "untouched").unwrap();
    let volume = outer.path().join("volume");
    let fail = build(&volume, &[&[layer.gzip()]], &Options::default()).expect_err(name);
    assert_eq!(fail.class, Class::Corrupt, "{name}: {}", fail.message);
    assert!(fail.message.contains(words), "{name}: {:?} does not say {words:?}", fail.message);
    assert_eq!(std::fs::read(&secret).unwrap(), b"untouched", "{name}");
    let names: Vec<_> = std::fs::read_dir(outer.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{name}: {names:?}");
    assert_eq!(
        std::fs::read_dir(volume.join(".larder/staging")).unwrap().count(),
        0,
        "{name}: staging is left"
    );
}

#[test]
fn malicious_members_are_rejected() {
    let new = LayerBuilder::new;
    let cases: Vec<(&str, LayerBuilder, &str)> = vec![
        ("dotdot", new().file("../secret", "x"), "leaves the layer"),
        ("dotdot inside", new().file("a/../../secret", "x"), "leaves the layer"),
        ("absolute dotdot", new().file("/../secret", "x"), "leaves the layer"),
        ("link out", new().hardlink("x", "../secret"), "leaves the layer"),
        ("link to a directory", new().dir("d").hardlink("x", "d"), "hard link to the directory"),
        ("link over its own target", new().file("d/f", "x").hardlink("d", "d/f"), "neither this layer"),
        ("link to nothing", new().hardlink("x", "nowhere"), "neither this layer nor one below"),
        (
            "link through a link to nothing",
            new().symlink("l", "/etc").hardlink("x", "l/passwd"),
            "neither this layer",
        ),
        ("file as parent", new().file("f", "x").file("f/x", "x"), "is not a directory"),
        (
            "malformed ACL",
            new().xattr("system.posix_acl_access", "\x02\0\0\0nonsense").file("f", "x"),
            "is malformed",
        ),
        ("too deep", new().pax("path", vec!["d"; 3000].join("/")).file("short", ""), "components"),
        ("loop", new().symlink("a", "b").symlink("b", "a").file("a/x", "x"), "symbolic links"),
        ("whiteout of nothing", new().file(".wh.", ""), "whiteout without a valid name"),
        ("whiteout of dot", new().file("d/.wh..", ""), "whiteout without a valid name"),
        ("whiteout of dotdot", new().file("d/.wh...", ""), "whiteout without a valid name"),
        ("whiteout that is a directory", new().dir(".wh.d"), "not a regular file"),
        ("whiteout that is a link", new().symlink(".wh.d", "x"), "not a regular file"),
        ("overlay's own whiteout", new().char_device("x", 0, 0), "character device 0:0"),
        ("overlay attribute", new().xattr("trusted.overlay.redirect", "/etc").dir("d"), "overlayfs obeys"),
        ("root as a link", new().symlink("./", "/etc"), "root of the layer"),
        ("root as a file", new().file("/", "x"), "root of the layer"),
        ("long component", new().pax("path", "x".repeat(256)).file("short", ""), "longer than 255"),
        (
            "whiteout of a long name",
            new().pax("path", format!(".wh.{}", "x".repeat(256))).file("short", ""),
            "longer than 255",
        ),
        (
            "link to a long whiteout",
            new().pax("linkpath", format!(".wh.{}", "x".repeat(255))).hardlink("l", "short"),
            "longer than 255",
        ),
        ("long component in a link", new().symlink("l", "x".repeat(300)).file("l/x", ""), "longer than 255"),
        ("empty link", new().symlink("l", ""), "target of the symbolic link"),
    ];
    for (name, layer, words) in cases {
        refused(name, layer, words);
    }
}

#[test]
fn odd_but_valid_members_are_accepted() {
    let new = LayerBuilder::new;
    for (name, layer) in [
        ("absolute", new().file("/etc/x", "x")),
        ("dotdot that stays", new().file("a/../b", "x")),
        ("newline", new().file("a\nb", "x")),
        ("link out as text", new().symlink("l", "../../../../etc/passwd")),
        ("through a link up", new().symlink("l", "../../..").file("l/x", "x")),
        ("link to itself", new().file("f", "x").hardlink("f", "f")),
        ("aufs", new().file(".wh..wh.aufs", "x").file(".wh..wh.plnk/1.2", "data")),
        ("whiteouts as links", new().file(".wh.a", "").hardlink(".wh.b", ".wh.a")),
    ] {
        let dir = tempfile::tempdir().unwrap();
        build(dir.path(), &[&[layer.gzip()]], &Options::default())
            .unwrap_or_else(|e| panic!("{name}: {}", e.message));
        crate::verify::verify(dir.path()).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

#[test]
fn a_member_larger_than_the_cap_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let layer = LayerBuilder::new().file("small", "x").file("big", vec![1; 3 << 20]).gzip();
    let options = Options { size: 2 << 20, ..Options::default() };
    let fail = build(dir.path(), &[&[layer]], &options).unwrap_err();
    assert_eq!(fail.class, Class::NoSpace);
    assert!(fail.message.contains("big") && fail.message.contains("2 MiB"), "{}", fail.message);
}

#[test]
fn a_blob_that_is_not_what_was_promised() {
    let dir = tempfile::tempdir().unwrap();
    let mut layer = LayerBuilder::new().file("x", "x").gzip();
    layer.diff_id = larder_model::digest::Digest::sha256(b"something else");
    let fail = build(dir.path(), &[&[layer]], &Options::default()).unwrap_err();
    assert_eq!(fail.class, Class::Corrupt);
    assert!(fail.message.contains("the config"), "{}", fail.message);
}

#[test]
fn paths_and_links_cannot_fill_memory() {
    let mut layer = LayerBuilder::new();
    for number in 0..45 {
        let deep = format!("{number}/{}", vec!["component"; 800].join("/"));
        layer = layer.pax("path", format!("{deep}/f")).file("short", "");
    }
    refused("deep", layer, "of memory for");
}

#[test]
fn nothing_is_made_below_a_link_to_a_lower_file() {
    let base = LayerBuilder::new().file("bin", "x").gzip();
    let upper = LayerBuilder::new().hardlink("f", "bin").file("f/x", "x").gzip();
    let dir = tempfile::tempdir().unwrap();
    let fail = build(dir.path(), &[&[base, upper]], &Options::default()).unwrap_err();
    assert_eq!(fail.class, Class::Corrupt);
    assert!(fail.message.contains("is not a directory"), "{}", fail.message);
}
