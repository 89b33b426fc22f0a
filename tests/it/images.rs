//! Volumes whose layers are EROFS images: their content, the detection of every changed bit, and interrupted
//! builds.

mod daemon;
mod earlier;
mod mounts;
mod unprivileged;
mod verity;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use larder_model::digest::Digest;
use larder_testing::image::{Format, Image};
use larder_testing::layer::LayerBuilder;
use nix::sys::signal::Signal;

use crate::erofs::fsck;
use crate::harness::served::{Running, Served, cache, nothing_staged, random};
use crate::harness::{Need, exits, isolated, larder, succeed};

const SIZE: u64 = 64 << 20;
const FSCK: Need = Need::Program("fsck.erofs");

/// Returns two images. Two layers depend on each other in every way, a third is on top, and one is in both
/// images, with different parents.
pub(crate) fn images() -> [Image; 2] {
    let base = LayerBuilder::new()
        .mtime(1_600_000_000)
        .owner(3, 4)
        .mode(0o751)
        .dir("etc")
        .owner(0, 0)
        .file("etc/passwd", "root:x:0:0::/root:/bin/sh\n")
        .mode(0o4755)
        .file("tool", random(1, 9000))
        .xattr("user.note", "kept")
        .file("noted", random(2, 70_000))
        .symlink("link", "etc/passwd")
        .char_device("null", 1, 3)
        .fifo("pipe")
        .dir("opaque")
        .file("opaque/old", "hidden");
    let middle = LayerBuilder::new()
        .mtime(1_600_000_001)
        .owner(0, 0)
        .file("etc/extra", "in a directory that this layer implies")
        .hardlink("alias", "etc/passwd")
        .hardlink("deep/alias", "noted")
        .whiteout("link")
        .dir("opaque")
        .opaque("opaque")
        .file("opaque/new", "shown");
    let top = LayerBuilder::new().dir("srv").file("srv/large", random(3, 300_000));
    let shared = || LayerBuilder::new().file("etc/shared", "shared").file("again", "1").file("again", "2");
    let other = LayerBuilder::new().dir("elsewhere").file("elsewhere/file", "x");
    let image = |layers: Vec<larder_testing::layer::BuiltLayer>| {
        Image::builder(Format::Oci).layers(layers.into_iter().map(Into::into)).build()
    };
    [
        image(vec![base.gzip(), middle.zstd(), top.gzip(), shared().gzip()]),
        image(vec![other.gzip(), shared().gzip()]),
    ]
}

/// Returns a build of EROFS images from the images of a registry.
pub(crate) fn build(served: &Served, volume: &Path) -> Command {
    let mut command = served.build(volume, SIZE);
    command.args(["--layer-format", "erofs"]);
    command
}

/// Returns every regular file below `root`, by its relative path.
pub(crate) fn files(root: &Path) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        match path.is_dir() {
            true => pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path())),
            false => {
                found.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned(), path);
            }
        }
    }
    found
}

fn contents(root: &Path) -> BTreeMap<String, Digest> {
    files(root).into_iter().map(|(name, path)| (name, Digest::sha256(&fs::read(path).unwrap()))).collect()
}

/// Returns the bytes that `larder export` writes for a volume.
fn exported(volume: &Path, to: &Path) -> Vec<u8> {
    succeed(larder().arg("export").arg(volume).arg(to).args(["--format", "oci-archive"]));
    fs::read(to).unwrap()
}

#[case]
fn a_volume_of_images() {
    isolated(&[FSCK], || {
        let served = Served::new(images());
        let volume = served.volume();
        succeed(build(&served, &volume).args(["--verify-after", "--concurrency", "1"]));
        let content = cache(&volume).content;
        let layers = &content.layers;
        assert_eq!(layers.len(), 6);
        for layer in layers {
            let hex = layer.diff_id.hex();
            let image = volume.join(format!("erofs/sha256/{}/{hex}.erofs", &hex[..2]));
            let recorded = layer.image.as_ref().unwrap();
            assert_eq!(fs::metadata(&image).unwrap().len(), recorded.size);
            assert_eq!(fs::metadata(&image).unwrap().mode() & 0o777, 0o644);
            let fixup = volume.join(format!("erofs/chain/{}.erofs", layer.chain_id.hex()));
            assert_eq!(fs::metadata(fixup).ok().map(|facts| facts.len()), recorded.fixup_size);
        }
        // Nothing exists twice, and there are no directories of an overlay store.
        let names: Vec<String> = files(&volume.join("erofs")).into_keys().collect();
        assert_eq!(names.iter().filter(|name| name.starts_with("sha256/")).count(), 5);
        assert_eq!(names.iter().filter(|name| name.starts_with("tar-split/")).count(), 5);
        // A layer that depends on `etc` below it needs a fixup: two in the first image, none in the second.
        let fixups: Vec<bool> =
            layers.iter().map(|layer| layer.image.as_ref().unwrap().fixup_size.is_some()).collect();
        assert_eq!(fixups.iter().filter(|has| **has).count(), 2, "{layers:?}");
        assert!(
            ["overlay", "overlay-layers", "overlay-images"].iter().all(|name| !volume.join(name).exists())
        );
        for (name, path) in files(&volume.join("erofs")) {
            assert!(!name.ends_with(".erofs") || fsck(&path).is_empty(), "{name}");
        }
        let said = succeed(larder().arg("inspect").arg(&volume));
        assert!(said.contains("layers are EROFS images"), "{said}");
        assert!(said.contains("diff IDs alone are not enough: 2 of its layers"), "{said}");
        assert_eq!(said.matches("diff IDs alone are not enough").count(), 1, "{said}");
        assert!(said.contains("inherited (2)\n    .\n    etc\n"), "{said}");
        succeed(larder().args(["inspect", "--extents"]).arg(&volume));

        // The bytes are the same in whatever order layers arrive, and with leftovers of an earlier build.
        for (name, flags) in [("many", ["--concurrency", "8"]), ("again", ["--concurrency", "8"])] {
            let other = served.beside(name);
            succeed(build(&served, &other).args(flags));
            assert_eq!(contents(&volume.join("erofs")), contents(&other.join("erofs")));
            assert_eq!(cache(&other), cache(&volume));
        }
        // The archive is the same as from directories, and can be imported again.
        let directories = served.beside("directories");
        succeed(&mut served.build(&directories, SIZE));
        let archive = served.beside("images.tar");
        let want = exported(&directories, &served.beside("directories.tar"));
        assert!(exported(&volume, &archive) == want, "the archives differ");
        let imported = served.beside("imported");
        let mut import = larder();
        import.arg("import").arg(&archive).arg("--volume").arg(&imported).args(["--sizing", "warn"]);
        succeed(import.args(["--layer-format", "erofs", "--size", "64MiB"]));
        succeed(larder().arg("verify").arg(&imported));
        assert_eq!(contents(&volume.join("erofs")), contents(&imported.join("erofs")));
    });
}

#[case]
fn the_format_of_a_volume_that_was_begun_is_kept() {
    isolated(&[], || {
        let served = Served::new(images());
        let volume = served.volume();
        succeed(&mut build(&served, &volume));
        succeed(&mut served.build(&volume, SIZE));
        let said = exits(73, served.build(&volume, SIZE).args(["--layer-format", "overlay"]));
        assert!(said.contains("another job"), "{said}");
        // The configuration applies if neither the command line nor the volume decides.
        let configured = served.beside("configured");
        succeed(served.build(&configured, SIZE).env("LARDER_BUILD__LAYER_FORMAT", "erofs"));
        assert!(configured.join("erofs").exists());
        let job = served.beside("job.json");
        let references = served.references();
        let text = serde_json::json!({"images": references, "size": SIZE, "sizing": "warn", "layer_format": "erofs"});
        fs::write(&job, text.to_string()).unwrap();
        let of_job = served.beside("of-job");
        succeed(larder().arg("build").arg("--job").arg(job).arg("--volume").arg(&of_job));
        assert_eq!(contents(&of_job.join("erofs")), contents(&configured.join("erofs")));
    });
}

/// Flips bits in every image of a sealed volume, one at a time. Each flip must be detected.
#[case]
fn any_flipped_bit_is_found() {
    isolated(&[], || {
        let served = Served::new(images());
        let volume = served.volume();
        succeed(&mut build(&served, &volume));
        succeed(larder().arg("verify").arg(&volume));
        let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
        for (name, path) in files(&volume) {
            if name.starts_with(".larder/") || !name.starts_with("erofs/") {
                continue;
            }
            let sound = fs::read(&path).unwrap();
            for n in 0..cases {
                let place = random(n + sound.len() as u64, 8);
                let place = u64::from_le_bytes(place.try_into().unwrap()) % (sound.len() as u64 * 8);
                // The first bytes contain the fields whose changes are easiest to miss.
                let place = if n % 3 == 0 { place % (sound.len() as u64 * 8).min(1200 * 8) } else { place };
                let mut changed = sound.clone();
                changed[usize::try_from(place / 8).unwrap()] ^= 1 << (place % 8);
                fs::write(&path, changed).unwrap();
                // gzip has bits without meaning, and the decompressed content has its own checksum.
                let may_pass = name.ends_with(".gz");
                let output = larder().arg("verify").arg(&volume).output().unwrap();
                let code = output.status.code();
                assert!(code == Some(65) || may_pass && code == Some(0), "bit {place} of {name}: {output:?}");
            }
            // Truncated and extended files.
            for size in [0, sound.len() as u64 / 2, sound.len() as u64 + 1] {
                fs::write(&path, &sound).unwrap();
                fs::File::options().write(true).open(&path).unwrap().set_len(size).unwrap();
                exits(65, larder().arg("verify").arg(&volume));
            }
            fs::remove_file(&path).unwrap();
            let said = exits(65, larder().arg("verify").arg(&volume));
            assert!(said.contains("it is missing"), "{name}: {said}");
            fs::write(&path, &sound).unwrap();
        }
        succeed(larder().arg("verify").arg(&volume));
        fs::write(volume.join("erofs/sha256/more"), "").unwrap();
        let said = exits(65, larder().arg("verify").arg(&volume));
        assert!(said.contains("it should not exist"), "{said}");
    });
}

#[case]
fn a_killed_build_resumes_with_its_layers() {
    isolated(&[], || {
        let served = Served::new(images());
        let volume = served.volume();
        let whole = served.beside("whole");
        succeed(&mut build(&served, &whole));
        let total = served.registry.served_total();
        let mut landed = 0;
        for part in 0..8 {
            let _ = fs::remove_dir_all(&volume);
            served.registry.forget();
            let mut running = Running::start(&mut build(&served, &volume));
            landed += u32::from(running.until(|| served.registry.served_total() > total * part / 8));
            running.kill();
            // Leftovers of all types, which no journal line lists.
            if volume.join("erofs/chain").exists() {
                fs::create_dir_all(volume.join("erofs/sha256/zz")).unwrap();
                fs::write(volume.join("erofs/sha256/zz/x.erofs"), "x").unwrap();
                fs::write(volume.join("erofs/chain/x.erofs"), "x").unwrap();
                fs::write(volume.join("erofs/tar-split/x.gz"), "x").unwrap();
            }
            succeed(&mut build(&served, &volume));
            assert!(nothing_staged(&volume));
            succeed(larder().arg("verify").arg(&volume));
            assert_eq!(contents(&whole.join("erofs")), contents(&volume.join("erofs")), "part {part}");
        }
        assert!(landed > 0, "every build ended before the kill");
        // A layer that is committed with one chain ID is not fetched again for another.
        let _ = fs::remove_dir_all(&volume);
        let last = served.images[1].layers[0].digest.clone();
        served.registry.fault(larder_testing::registry::Fault::StallAt { digest: last, offsets: vec![10] });
        let mut running = Running::start(&mut build(&served, &volume));
        let committed = || fs::read_to_string(volume.join(".larder/journal")).unwrap_or_default();
        assert!(running.until(|| committed().matches("\"committed\"").count() == 4));
        running.signal(Signal::SIGTERM);
        running.code_within(std::time::Duration::from_secs(20));
        served.registry.heal();
        served.registry.forget();
        succeed(&mut build(&served, &volume));
        let shared = &served.images[1].layers[1];
        assert_eq!(served.registry.served(&shared.digest), 0);
        succeed(larder().arg("verify").arg(&volume));
        assert_eq!(contents(&whole.join("erofs")), contents(&volume.join("erofs")));
    });
}

#[case]
fn what_starts_read_first_is_read_from_images() {
    isolated(&[Need::Program("busybox")], || {
        let shell = Image::builder(Format::Oci)
            .layer(larder_testing::image::busybox().unwrap())
            .command(&["/bin/sh", "-c", "exec cat /etc/hostname"])
            .build();
        let served = Served::new([shell]);
        let volume = served.volume();
        succeed(&mut build(&served, &volume));
        let list = fs::read_to_string(volume.join("prefetch.list")).unwrap();
        let hex = served.images[0].layers[0].diff_id.hex();
        assert!(list.contains(&format!(" erofs/sha256/{}/{hex}.erofs/bin/sh\n", &hex[..2])), "{list}");
        let said = succeed(larder().arg("prefetch").arg(&volume));
        let all = succeed(larder().args(["prefetch", "--all"]).arg(&volume));
        assert_ne!(said, all);
        assert!(!said.contains("0 files"), "{said}");
    });
}

#[case]
fn a_confined_build_of_images() {
    isolated(&[], || {
        let served = Served::new(images());
        let volume = served.volume();
        succeed(&mut build(&served, &volume));
        let confined = served.beside("confined");
        succeed(build(&served, &confined).args(["--verify-after"]));
        assert_eq!(contents(&volume.join("erofs")), contents(&confined.join("erofs")));
    });
}
