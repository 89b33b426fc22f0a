//! A build of EROFS images needs neither root nor a capability: Pod Security's profile "restricted" is
//! enough.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::process::Command;

use crate::confine::demanding;
use crate::harness::overlay::View;
use crate::harness::registry::Registry;
use crate::harness::tree::{Tolerance, differences, scan};
use crate::harness::{Need, exits, isolated, larder, succeed};

const NOBODY: u32 = 65534;

/// The group of a volume in a pod (`fsGroup`). The directory belongs to root and this group, and has the
/// set-group-ID bit.
const GROUP: u32 = 2000;

#[case]
fn an_unprivileged_build_equals_that_of_root() {
    let needs =
        [Need::Program("docker-registry"), Need::Program("setpriv"), Need::Program("busybox"), Need::Erofs];
    isolated(&needs, || {
        let registry = Registry::open();
        let image = demanding();
        let reference = registry.push(&image, "team/app", "1");
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let volume = dir.path().join("volume");
        fs::create_dir(&volume).unwrap();
        chown(&volume, Some(0), Some(GROUP)).unwrap();
        fs::set_permissions(&volume, fs::Permissions::from_mode(0o2770)).unwrap();
        // A user without rights cannot run a binary below a home directory of root.
        let binary = dir.path().join("larder");
        // `cp` writes the copy: in this process, a concurrent fork would keep it open for writing.
        succeed(Command::new("cp").arg(larder().get_program()).arg(&binary));
        let nobody = |format: &str| {
            let mut build = Command::new("setpriv");
            let group = GROUP.to_string();
            build.args(["--reuid", "65534", "--regid", "65534", "--groups", &group]);
            build.args(["--bounding-set", "-all", "--inh-caps", "-all", "--no-new-privs"]);
            build.env("HOME", "/").arg(&binary).args(["build", "--verify-after", "--size", "256MiB"]);
            build.args(["--layer-format", format, &reference, "--volume"]).arg(&volume);
            build
        };
        let said = exits(77, &mut nobody("overlay"));
        assert!(said.contains("CAP_CHOWN") && said.contains("--layer-format erofs"), "{said}");
        succeed(&mut nobody("erofs"));

        let cache = fs::read_to_string(volume.join("cache.json")).unwrap();
        assert!(!cache.contains("\"lost\""), "{cache}");
        for (name, path) in super::files(&volume) {
            let facts = fs::metadata(&path).unwrap();
            assert_eq!(
                (facts.uid(), facts.gid()),
                (NOBODY, if name.contains('/') { facts.gid() } else { GROUP }),
                "{name}"
            );
        }
        // The result equals the build of root byte by byte, and the mounted tree equals root's directories.
        let by_root = dir.path().join("root");
        let directories = dir.path().join("directories");
        for (volume, format) in [(&by_root, "erofs"), (&directories, "overlay")] {
            let mut build = larder();
            build.args(["build", "--size", "256MiB", "--layer-format", format, &reference, "--volume"]);
            succeed(build.arg(volume));
        }
        assert_eq!(super::contents(&volume.join("erofs")), super::contents(&by_root.join("erofs")));
        let diff_ids: Vec<_> = image.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let (want, found) = (View::mount(&directories, &diff_ids), View::mount_images(&volume, &diff_ids));
        // Only the times of implied directories can differ.
        let tolerance = Tolerance { directory_times: true, ..Tolerance::default() };
        let lines = differences(&scan(&want.path()), &scan(&found.path()), tolerance);
        assert!(lines.is_empty(), "{}", lines.join("\n"));
        let ping = fs::metadata(found.path().join("bin/ping")).unwrap();
        assert_eq!((ping.uid(), ping.gid(), ping.mode() & 0o7777), (1000, 1001, 0o4755));
        assert_eq!(fs::read_dir(found.path().join("emptied")).unwrap().count(), 0);
    });
}
