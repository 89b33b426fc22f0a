//! Hostile archives.

use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use larder_model::digest::Digest;
use serde_json::{Value, json};

use super::*;

/// One image as an OCI layout, to be corrupted.
struct CorruptLayout {
    served: Served,
    layout: PathBuf,
    layer: PathBuf,
}

impl CorruptLayout {
    fn new() -> Self {
        let files = [Member::file("a", &"content ".repeat(5000))];
        let served = Served::new([Image::builder(Format::Oci).layer(layer(&files, Packing::Gzip)).build()]);
        let volume = served.volume();
        succeed(&mut served.build(&volume, 16 << 20));
        let layout = served.beside("layout");
        succeed(&mut export(&volume, &layout, "oci-layout", "gzip"));
        let manifest = blob(&layout, digest_in(&layout.join("index.json"), &["manifests", "0"]));
        let layer = blob(&layout, digest_in(&manifest, &["layers", "0"]));
        CorruptLayout { served, layout, layer }
    }

    /// Checks that the import of `archive` ends with `code` in a short time, and that nothing is sealed.
    fn refused(&self, code: i32, archive: &Path, what: &str) -> String {
        let volume = self.served.beside("hostile");
        let started = Instant::now();
        let said = exits(code, &mut import(archive, &volume));
        assert!(started.elapsed() < Duration::from_secs(20), "{what}: {said}");
        assert!(!volume.join("cache.json").exists(), "{what}: {said}");
        if volume.exists() {
            fs::remove_dir_all(&volume).unwrap();
        }
        said
    }
}

fn blob(layout: &Path, digest: String) -> PathBuf {
    layout.join("blobs").join(digest.replace(':', "/"))
}

fn digest_in(file: &Path, path: &[&str]) -> String {
    let json: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let pointer = format!("/{}/digest", path.join("/"));
    json.pointer(&pointer).unwrap().as_str().unwrap().to_owned()
}

/// Replaces the manifest of the layout by the result of `change`, with correct digests.
fn with_manifest(layout: &Path, change: impl Fn(&mut Value)) {
    let index = layout.join("index.json");
    let path = blob(layout, digest_in(&index, &["manifests", "0"]));
    let mut manifest: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut manifest);
    let bytes = manifest.to_string().into_bytes();
    let digest = Digest::sha256(&bytes);
    fs::write(layout.join("blobs/sha256").join(digest.hex()), &bytes).unwrap();
    let mut json: Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    json["manifests"][0]["digest"] = json!(digest);
    json["manifests"][0]["size"] = json!(bytes.len());
    fs::write(index, json.to_string()).unwrap();
}

#[case]
fn layouts() {
    isolated(&[], || {
        let victim = CorruptLayout::new();
        let (layout, layer) = (&victim.layout, &victim.layer);
        let whole = fs::read(layer).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        fs::write(layer, &flipped).unwrap();
        victim.refused(65, layout, "a flipped bit");
        fs::write(layer, &whole[..whole.len() - 1]).unwrap();
        victim.refused(65, layout, "a byte too few");
        fs::write(layer, [&whole[..], b"x"].concat()).unwrap();
        victim.refused(65, layout, "a byte too many");

        // The bytes are correct, but lie outside of the archive.
        let outside = victim.served.beside("outside");
        fs::write(&outside, &whole).unwrap();
        fs::remove_file(layer).unwrap();
        symlink(&outside, layer).unwrap();
        let said = victim.refused(65, layout, "a link out of it");
        assert!(said.contains("links are not followed"), "{said}");
        fs::remove_file(layer).unwrap();
        nix::unistd::mkfifo(layer, nix::sys::stat::Mode::S_IRWXU).unwrap();
        victim.refused(65, layout, "a pipe");
        fs::remove_file(layer).unwrap();
        victim.refused(65, layout, "no layer");
        fs::write(layer, &whole).unwrap();

        let index = layout.join("index.json");
        let right = fs::read_to_string(&index).unwrap();
        for (what, text) in [
            ("a path for a digest", right.replacen("sha256:", "sha256:../../", 1)),
            ("half a file", right[..right.len() / 2].to_owned()),
            ("a key twice", right.replacen('{', r#"{"manifests":[],"#, 1)),
            ("a size below zero", right.replacen("\"size\":", "\"size\":-", 1)),
            ("a size that lies", right.replacen("\"size\":", "\"size\":1", 1)),
            ("five megabytes", format!("{right}{}", " ".repeat(5 << 20))),
            ("a type that it is not", right.replace("image.manifest.v1", "image.index.v1")),
        ] {
            fs::write(&index, text).unwrap();
            victim.refused(65, layout, what);
        }
        fs::remove_file(&index).unwrap();
        symlink(victim.served.beside("outside"), &index).unwrap();
        victim.refused(65, layout, "an index elsewhere");
        fs::remove_file(&index).unwrap();
        fs::write(&index, &right).unwrap();

        with_manifest(layout, |manifest| manifest["layers"][0]["size"] = json!(1));
        victim.refused(65, layout, "a layer that is larger than it says");
        with_manifest(layout, |manifest| manifest["layers"][0]["size"] = json!(1_u64 << 62));
        // The 3x rule applies before the layer is read.
        victim.refused(65, layout, "a layer that is smaller than it says");
        with_manifest(layout, |manifest| manifest["manifests"] = json!([]));
        victim.refused(65, layout, "image and index at once");
        fs::write(&index, &right).unwrap();

        fs::rename(layout.join("blobs"), victim.served.beside("blobs")).unwrap();
        symlink(victim.served.beside("blobs"), layout.join("blobs")).unwrap();
        victim.refused(65, layout, "blobs elsewhere");
        fs::remove_file(layout.join("blobs")).unwrap();
        fs::rename(victim.served.beside("blobs"), layout.join("blobs")).unwrap();
        succeed(&mut import(layout, &victim.served.beside("fine")));
    });
}

/// Returns a tar of these members.
fn tar(members: &[(&str, tar::EntryType, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, kind, content) in members {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.set_mtime(0);
        let mut content = *content;
        if matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link) {
            header.set_link_name_literal(content).unwrap();
            content = &[];
        }
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, content).unwrap();
    }
    tar.into_inner().unwrap()
}

#[case]
fn docker_archives() {
    isolated(&[], || {
        use tar::EntryType::{Fifo, Regular, Symlink};
        let victim = CorruptLayout::new();
        let archive = victim.served.beside("archive");
        let config = &victim.served.images[0].config.bytes;
        let layer = crate::harness::layers::write(&[Member::file("a", &"content ".repeat(5000))]);
        let list = |layer: &str| {
            json!([{"Config": "config.json", "RepoTags": ["a:1"], "Layers": [layer]}]).to_string()
        };
        let put = |bytes: &[u8]| fs::write(&archive, bytes).unwrap();
        let good = list("layer.tar");
        let (list_of, config_of) =
            (("manifest.json", Regular, good.as_bytes()), ("config.json", Regular, &config[..]));
        let layer_of = ("layer.tar", Regular, &layer[..]);
        // Links inside the tar are followed, because docker writes them.
        put(&tar(&[list_of, config_of, ("d/l.tar", Regular, &layer), ("layer.tar", Symlink, b"d/l.tar")]));
        succeed(&mut import(&archive, &victim.served.beside("fine")));

        let outside = list("../../../../etc/passwd");
        let absolute = list("/etc/passwd");
        let other = list("config.json");
        let none = json!([{"Config": "config.json", "RepoTags": ["a:1"], "Layers": []}]).to_string();
        let misnamed = good.replace("config.json", &format!("{}.json", "a".repeat(64)));
        let misnamed_config = format!("{}.json", "a".repeat(64));
        for (what, members) in [
            ("a layer outside", vec![("manifest.json", Regular, outside.as_bytes()), config_of, layer_of]),
            ("an absolute path", vec![("manifest.json", Regular, absolute.as_bytes()), config_of, layer_of]),
            ("a link outside", vec![list_of, config_of, ("layer.tar", Symlink, b"/etc/passwd")]),
            ("a link further outside", vec![list_of, config_of, ("layer.tar", Symlink, b"../../etc/passwd")]),
            (
                "a cycle of links",
                vec![list_of, config_of, ("x", Symlink, b"layer.tar"), ("layer.tar", Symlink, b"x")],
            ),
            ("another layer", vec![("manifest.json", Regular, other.as_bytes()), config_of, layer_of]),
            ("no layers", vec![("manifest.json", Regular, none.as_bytes()), config_of, layer_of]),
            ("no config", vec![list_of, layer_of]),
            (
                "another config with the same name",
                vec![list_of, config_of, ("config.json", Regular, b"{}"), layer_of],
            ),
            ("another list", vec![list_of, ("manifest.json", Regular, b"[]"), config_of, layer_of]),
            (
                "a link with the same name",
                vec![list_of, config_of, layer_of, ("layer.tar", Symlink, b"config.json")],
            ),
            ("a pipe", vec![list_of, config_of, layer_of, ("p", Fifo, b"")]),
            ("a name that leaves", vec![list_of, config_of, layer_of, ("../p", Regular, b"")]),
            (
                "a name with the wrong digest",
                vec![
                    ("manifest.json", Regular, misnamed.as_bytes()),
                    (&misnamed_config, Regular, config),
                    layer_of,
                ],
            ),
        ] {
            put(&tar(&members));
            victim.refused(65, &archive, what);
        }
        let whole = tar(&[list_of, config_of, layer_of]);
        for cut in (1..whole.len() - 1024).step_by(whole.len() / 37) {
            put(&whole[..cut]);
            let said = larder()
                .arg("import")
                .arg(&archive)
                .arg("--volume")
                .arg(victim.served.beside("cut"))
                .output();
            let said = said.unwrap();
            assert!(matches!(said.status.code(), Some(64 | 65)), "cut at {cut}: {said:?}");
            assert!(!victim.served.beside("cut/cache.json").exists());
        }
    });
}

/// Many members, members with false sizes, and a small file that expands to a large one.
#[case]
fn bombs() {
    isolated(&[Need::Program("gzip")], || {
        let victim = CorruptLayout::new();
        let archive = victim.served.beside("archive");
        let mut header = tar::Header::new_ustar();
        header.set_path("oci-layout").unwrap();
        header.set_size(1 << 62);
        header.set_cksum();
        fs::write(&archive, [&header.as_bytes()[..], &[0; 4096]].concat()).unwrap();
        victim.refused(65, &archive, "a member of 4 EiB");

        let mut many = Vec::new();
        for number in 0..150_000 {
            let mut header = tar::Header::new_ustar();
            header.set_path(format!("f{number}")).unwrap();
            header.set_size(0);
            header.set_cksum();
            many.extend_from_slice(header.as_bytes());
        }
        fs::write(&archive, &many).unwrap();
        victim.refused(65, &archive, "150,000 members");

        let zeros = "head -c 2G /dev/zero | gzip -1";
        let bomb = Command::new("sh").args(["-c", zeros]).output().unwrap().stdout;
        fs::write(&archive, &bomb).unwrap();
        let small =
            crate::harness::filesystem::FileSystem::new(crate::harness::filesystem::Kind::Tmpfs, 64 << 20);
        let volume = victim.served.beside("bombed");
        let said = exits(73, import(&archive, &volume).env("TMPDIR", small.path()));
        assert!(said.contains("half of the free space"), "{said}");
        assert!(!volume.exists());
        assert_eq!(fs::read_dir(small.path()).unwrap().count(), 0);
    });
}
