//! Capabilities (capabilities(7)) that a build needs, and builds with fewer.

use std::fs;
use std::path::Path;
use std::process::Command;

use larder_model::digest::Digest;
use larder_testing::image::{self, Format, Image};

use crate::harness::layers::{Member, Packing, layer};
use crate::harness::overlay::View;
use crate::harness::registry::Registry;
use crate::harness::{Need, exits, isolated, larder, succeed};

const NEEDS: &[Need] =
    &[Need::Program("docker-registry"), Need::Program("setpriv"), Need::Program("busybox")];

/// Capabilities that Pod Security's profile "baseline" allows a container to add.
const BASELINE: &str = "-all,+chown,+dac_override,+fowner,+fsetid,+mknod,+setfcap";

fn image() -> Image {
    let below = [
        Member::directory("emptied/").owner(5, 6),
        Member::file("emptied/a", "a"),
        Member::directory("emptied/deep/"),
        Member::file("emptied/deep/b", "b"),
    ];
    let above = [
        Member::whiteout("emptied/.wh..wh..opq"),
        Member::directory("emptied/deep/"),
        Member::file("emptied/new", "new").owner(1000, 1001).mode(0o4755),
    ];
    Image::builder(Format::Oci)
        .layers([image::busybox().unwrap(), layer(&below, Packing::Gzip), layer(&above, Packing::Gzip)])
        .build()
}

fn setpriv(arguments: &[&str], volume: &Path, reference: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(arguments).arg(larder().get_program()).arg("build").arg("--volume").arg(volume);
    command.args(["--size", "64MiB", reference]);
    command
}

#[case]
fn without_sys_admin_an_opaque_directory_shows_the_same() {
    isolated(NEEDS, || {
        let registry = Registry::open();
        let image = image();
        let reference = registry.push(&image, "team/app", "1");
        let dir = tempfile::tempdir().unwrap();
        succeed(&mut setpriv(&["--bounding-set", BASELINE], dir.path(), &reference));
        succeed(larder().arg("verify").arg(dir.path()));
        let cache = fs::read_to_string(dir.path().join("cache.json")).unwrap();
        assert!(cache.contains("opaque_as_whiteouts"), "{cache}");
        let diff_ids: Vec<Digest> = image.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let view = View::mount(dir.path(), &diff_ids);
        let shown = |path: &str| {
            let names = fs::read_dir(view.path().join(path)).unwrap();
            let mut names: Vec<_> =
                names.map(|name| name.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(shown("emptied"), ["deep", "new"]);
        assert!(shown("emptied/deep").is_empty());
    });
}

#[case]
fn missing_privileges_are_named_one_by_one() {
    isolated(NEEDS, || {
        let registry = Registry::open();
        let reference = registry.push(&image(), "team/app", "1");
        let dir = tempfile::tempdir().unwrap();
        let said = exits(77, &mut setpriv(&["--bounding-set", "-chown,-mknod"], dir.path(), &reference));
        assert!(
            said.contains("CAP_CHOWN") && said.contains("CAP_MKNOD") && !said.contains("CAP_FOWNER"),
            "{said}"
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "the build must not start");
    });
}

#[case]
fn a_rootless_build_records_what_it_cannot_keep() {
    isolated(NEEDS, || {
        let registry = Registry::open();
        let reference = registry.push(&image(), "team/app", "1");
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        fs::create_dir(&volume).unwrap();
        for path in [dir.path(), &volume] {
            std::os::unix::fs::chown(path, Some(65534), Some(65534)).unwrap();
        }
        // A user without rights cannot run a binary below a home directory of root.
        let binary = dir.path().join("larder");
        // `cp` writes the copy: in this process, a concurrent fork would keep it open for writing.
        succeed(Command::new("cp").arg(larder().get_program()).arg(&binary));
        let nobody = || {
            let mut command = Command::new("setpriv");
            command.args([
                "--reuid",
                "65534",
                "--regid",
                "65534",
                "--clear-groups",
                "--bounding-set",
                "-all",
            ]);
            command.env("HOME", dir.path()).arg(&binary);
            command
        };
        let mut build = nobody();
        build.args(["build", "--rootless", "--size", "64MiB", "--volume"]);
        succeed(build.arg(&volume).arg(&reference));
        succeed(nobody().arg("verify").arg(&volume));
        // Its owner could change it at any time, so root does not trust it.
        exits(65, larder().arg("verify").arg(&volume));
        let said = succeed(larder().arg("inspect").arg(&volume));
        assert!(said.contains("emptied/new: owner 1000:1001"), "{said}");
    });
}
