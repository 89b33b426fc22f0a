//! The mode of every file and directory that a command creates, independent of the umask of its caller.
//!
//! The content of layers has the modes of the image and is left out. The directories above it control the
//! access to it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use larder_model::job::LayerFormat;
use larder_testing::image::{Format, Image};
use larder_testing::layer::LayerBuilder;

use crate::harness::daemon::{Daemon, ROOMY, Tenant};
use crate::harness::served::Served;
use crate::harness::{in_shell, isolated, larder, succeed};

const UMASKS: [&str; 3] = ["000", "022", "077"];
const SIZE: u64 = 64 << 20;

/// Expected modes by path below the output of a command. The first pattern that matches counts; `*` is any
/// part of a path, `**` any rest of it.
type Table = &'static [(&'static str, u32)];

/// A volume of directories. Only the owner can enter its top directory. The modes below it are those that
/// consumers see through a mount.
const DIRECTORY: Table = &[
    ("", 0o700),
    (".larder", 0o700),
    (".larder/staging", 0o700),
    (".larder/*", 0o600),
    ("overlay/*/link", 0o644),
    ("overlay/*/lower", 0o644),
    ("overlay/l/*", SYMLINK),
    ("overlay/*", 0o755),
    ("overlay-layers/*", 0o644),
    ("overlay-images/*.lock", 0o644),
    ("overlay-images/*.json", 0o644),
    ("overlay-images/*/*", 0o644),
    ("overlay-images/*", 0o755),
    ("oci/blobs/sha256/*", 0o644),
    ("oci/blobs/sha256", 0o755),
    ("oci/blobs", 0o755),
    ("oci/*", 0o644),
    ("cache.json", 0o644),
    ("cache.json.sig", 0o644),
    ("prefetch.list", 0o644),
    ("snapshots.metadata", 0o644),
    ("*", 0o755),
];

/// A volume of EROFS images.
const EROFS: Table = &[
    ("", 0o700),
    (".larder", 0o700),
    (".larder/staging", 0o700),
    (".larder/*", 0o600),
    ("erofs/sha256/*/*", 0o644),
    ("erofs/tar-split/*", 0o644),
    ("erofs/chain/*", 0o644),
    ("erofs/*", 0o755),
    ("erofs/sha256/*", 0o755),
    ("oci/blobs/sha256/*", 0o644),
    ("oci/blobs/sha256", 0o755),
    ("oci/blobs", 0o755),
    ("oci/*", 0o644),
    ("cache.json", 0o644),
    ("prefetch.list", 0o644),
    ("snapshots.metadata", 0o644),
    ("*", 0o755),
];

/// The directory of a disk. Other users have no access to anything in it.
const DISK: Table = &[
    ("", 0o700),
    ("disk.img", 0o400),
    (".larder", 0o700),
    (".larder/*", 0o600),
    // Copies of files on the disk, with their modes.
    ("cache.json", 0o644),
    ("cache.json.sig", 0o644),
    ("*", 0o600),
];

/// Exports, keys and results.
const OWNERS: Table =
    &[("layout", 0o700), ("layout/blobs", 0o700), ("layout/blobs/sha256", 0o700), ("**", 0o600)];

/// The state directory of a daemon.
const STATE: Table = &[("**", OWNERS_ALONE)];

/// Symbolic links have no mode.
const SYMLINK: u32 = u32::MAX;
/// 0700 for a directory, 0600 for a file.
const OWNERS_ALONE: u32 = u32::MAX - 1;

fn matches(pattern: &str, path: &str) -> bool {
    let (mut patterns, mut parts) = (pattern.split('/'), path.split('/'));
    loop {
        match (patterns.next(), parts.next()) {
            (Some("**"), _) | (None, None) => return true,
            (Some(pattern), Some(part)) => {
                let fits = match pattern.split_once('*') {
                    Some((start, end)) => part.starts_with(start) && part.ends_with(end) && !part.is_empty(),
                    None => pattern == part,
                };
                if !fits {
                    return false;
                }
            }
            _ => return false,
        }
    }
}

/// Compares everything below `root` with the table, except the content of layers and directories called
/// `skip`.
fn compare(root: &Path, table: Table, skip: &str) {
    let mut wrong = Vec::new();
    let mut seen = 0;
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let below = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        if path.file_name().is_some_and(|name| name == "diff" || name == skip) {
            continue;
        }
        if metadata.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        seen += 1;
        let Some((pattern, mode)) = table.iter().find(|(pattern, _)| matches(pattern, &below)) else {
            wrong.push(format!("{below:?} is in no line of the table"));
            continue;
        };
        let want = match *mode {
            SYMLINK => continue,
            OWNERS_ALONE if metadata.is_dir() => 0o700,
            OWNERS_ALONE => 0o600,
            mode => mode,
        };
        let have = metadata.mode() & 0o7777;
        if have != want {
            wrong.push(format!("{below:?} is {have:04o}, the table says {want:04o} ({pattern:?})"));
        }
    }
    assert!(seen > 0 && wrong.is_empty(), "{}:\n{}", root.display(), wrong.join("\n"));
}

fn image() -> Image {
    let layer = |name: &str| LayerBuilder::new().dir("d").file(format!("d/{name}"), name.as_bytes()).gzip();
    Image::builder(Format::Oci).layers([layer("a").into(), layer("b").into()]).build()
}

/// Returns the command, run with this umask.
fn under(umask: &str, command: &Command) -> Command {
    in_shell(&format!("umask {umask} && exec \"$@\""), Path::new("sh"), command)
}

#[case]
fn volumes_are_the_owners_alone() {
    for umask in UMASKS {
        let served = Served::new([image()]);
        let key = served.beside("sign.pem");
        succeed(&mut under(umask, larder().args(["key", "generate"]).arg(&key)));
        assert_eq!(fs::metadata(&key).unwrap().mode() & 0o7777, 0o600, "umask {umask}");

        let volume = served.volume();
        let result = served.beside("result.json");
        let mut build = served.build(&volume, SIZE);
        build.arg("--sign-key").arg(&key).arg("--result-file").arg(&result);
        succeed(&mut under(umask, &build));
        compare(&volume, DIRECTORY, "");
        assert_eq!(fs::metadata(&result).unwrap().mode() & 0o7777, 0o600, "umask {umask}");

        // An existing directory is made private, too.
        let given = served.beside("given");
        fs::create_dir(&given).unwrap();
        fs::set_permissions(&given, Permissions::from_mode(0o777)).unwrap();
        succeed(&mut under(umask, &served.build(&given, SIZE)));
        compare(&given, DIRECTORY, "");

        let images = served.beside("images");
        let mut build = served.build(&images, SIZE);
        build.args(["--layer-format", LayerFormat::Erofs.word()]);
        succeed(&mut under(umask, &build));
        compare(&images, EROFS, "");

        let out = served.beside("out");
        fs::create_dir(&out).unwrap();
        fs::set_permissions(&out, Permissions::from_mode(0o600)).unwrap();
        for (format, name) in [
            ("oci-archive", "a.tar"),
            ("oci-layout", "layout"),
            ("docker-archive", "d.tar"),
            ("erofs", "e.img"),
        ] {
            let mut export = larder();
            export.arg("export").arg(&volume).arg(out.join(name)).args(["--format", format]);
            succeed(&mut under(umask, &export));
        }
        compare(&out, OWNERS, "");

        let imported = served.beside("imported");
        let mut import = larder();
        import.arg("import").arg(out.join("a.tar")).arg("--volume").arg(&imported);
        succeed(&mut under(umask, &import));
        compare(&imported, DIRECTORY, "");
    }
}

#[case]
fn disks_are_the_owners_alone() {
    isolated(&[], || {
        for umask in UMASKS {
            let served = Served::new([image()]);
            let volume = served.volume();
            let mut build = served.build(&volume, SIZE);
            build.args(["--volume-kind", "disk", "--sparse"]);
            succeed(&mut under(umask, &build));
            compare(&volume, DISK, "");
        }
    });
}

#[case]
fn state_of_a_daemon_is_the_owners_alone() {
    for umask in UMASKS {
        let served = Served::new([image()]);
        let tenant = Tenant("a");
        let starter = ["bash", "-c", &format!("umask {umask} && exec \"$@\""), "bash"].map(str::to_owned);
        let daemon = Daemon::start_by(&starter, &[tenant], ROOMY);
        let id = daemon.order(tenant, "one", &served.references());
        daemon.settle(tenant, &id, "Available", Duration::from_secs(60));
        compare(&daemon.state(), STATE, "volumes");
    }
}

/// Calls that take their mode from the umask alone. Control groups and /proc have their own modes. The other
/// exceptions are in a private file system in memory, or set the mode in the next call.
const WITHOUT_MODE: [&str; 4] = ["fs::create_dir(", "create_dir_all(", "File::create(", "fs::write("];
const EXCEPT: [&str; 5] = [
    "crates/sys/src/cgroup.rs",
    "crates/sys/src/confine/namespaces.rs",
    "crates/sys/src/process.rs",
    "src/rootfs.rs",
    "src/node/view/tree.rs",
];

#[case]
fn every_creation_names_a_mode() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut pending = vec![root.join("src"), root.join("crates")];
    let mut excepted = 0;
    while let Some(path) = pending.pop() {
        let name = path.strip_prefix(root).unwrap().to_str().unwrap();
        if path.is_dir() {
            if !["crates/testing", "crates/fake-kubernetes"].contains(&name) && !name.ends_with("/tests") {
                pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
            continue;
        }
        excepted += usize::from(EXCEPT.contains(&name));
        if name.ends_with("tests.rs") || !name.ends_with(".rs") || EXCEPT.contains(&name) {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap().split("#[cfg(all(test").next().unwrap();
        for (number, line) in code.lines().enumerate() {
            if WITHOUT_MODE.iter().any(|call| line.contains(call)) && !line.trim_start().starts_with("//") {
                found.push(format!("{name}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    assert_eq!(excepted, EXCEPT.len(), "files of the list do not exist");
    assert!(found.is_empty(), "files or directories created without a mode:\n{}", found.join("\n"));
}
