//! `larder mount` and `larder umount`.

use std::fs;
use std::path::Path;
use std::process::Command;

use larder_model::job::LayerFormat;
use nix::mount::MsFlags;

use super::{SIZE, images};
use crate::harness::overlay::View;
use crate::harness::served::Served;
use crate::harness::tree::{Tolerance, Tree, differences, scan};
use crate::harness::{Need, exits, isolated, larder, succeed};

/// Returns a larder whose mount records are separate from those of this machine.
fn larder_with_own_state() -> Command {
    let mut command = larder();
    command.env("LARDER_STATE__DIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/state-of-mounts"));
    command
}

fn mount(volume: &Path, image: &str, over: &Path) -> Command {
    let mut command = larder_with_own_state();
    command.arg("mount").arg(volume).arg(image).arg(over);
    command
}

fn umount(over: &Path) -> Command {
    let mut command = larder_with_own_state();
    command.arg("umount").arg(over);
    command
}

fn mountinfo() -> String {
    fs::read_to_string("/proc/thread-self/mountinfo").unwrap()
}

/// Compares trees, except for the times of implied directories, in which the formats differ.
fn agree(want: &Tree, found: &Tree) {
    let tolerance = Tolerance { directory_times: true, ..Tolerance::default() };
    let lines = differences(want, found, tolerance);
    assert!(lines.is_empty(), "{}", lines.join("\n"));
}

#[case]
fn an_image_is_mounted_from_volumes_of_any_kind() {
    isolated(&[Need::Erofs, Need::Program("mkfs.ext4")], || {
        let mut served = Served::new(images());
        let directories = served.beside("directories");
        succeed(&mut served.build(&directories, SIZE));
        let references = served.references();
        let diff_ids = |number: usize| {
            served.images[number].layers.iter().map(|layer| layer.diff_id.clone()).collect::<Vec<_>>()
        };
        let want: Vec<Tree> =
            (0..2).map(|number| scan(&View::mount(&directories, &diff_ids(number)).path())).collect();
        for form in [LayerFormat::Overlay, LayerFormat::Erofs] {
            served = served.with(form);
            for kind in ["directory", "disk"] {
                let volume = served.beside(&format!("{}-{kind}", form.word()));
                succeed(served.build(&volume, SIZE).args(["--volume-kind", kind]));
                succeed(larder().arg("verify").arg(&volume));
                for (number, reference) in references.iter().enumerate() {
                    let over = tempfile::tempdir().unwrap();
                    let before = mountinfo();
                    succeed(&mut mount(&volume, reference, over.path()));
                    let line = mountinfo();
                    let line = line.lines().last().unwrap();
                    assert!(line.contains("ro,nosuid,nodev") && line.contains("- overlay larder"), "{line}");
                    assert!(
                        line.contains("redirect_dir=nofollow,") || line.ends_with("redirect_dir=nofollow"),
                        "{line}"
                    );
                    assert!(!line.contains("metacopy=on"), "{line}");
                    agree(&want[number], &scan(over.path()));
                    fs::write(over.path().join("new"), "x").unwrap_err();
                    let said = exits(73, &mut mount(&volume, reference, over.path()));
                    assert!(said.contains("already a mount point"), "{said}");
                    // The mount is in use.
                    let file = fs::File::open(over.path()).unwrap();
                    exits(75, &mut umount(over.path()));
                    drop(file);
                    succeed(&mut umount(over.path()));
                    assert_eq!(mountinfo(), before, "no mount must be left");
                }
                // Nothing uses it any more.
                fs::remove_dir_all(&volume).unwrap();
            }
        }
    });
}

#[case]
fn a_failed_mount_leaves_nothing() {
    isolated(&[Need::Erofs], || {
        let served = Served::new(images()).with(LayerFormat::Erofs);
        let volume = served.volume();
        let over = tempfile::tempdir().unwrap();
        fs::create_dir(&volume).unwrap();
        exits(73, &mut mount(&volume, "a:1", over.path()));
        succeed(&mut served.build(&volume, SIZE));
        let reference = &served.references()[0];
        let before = mountinfo();
        exits(64, &mut mount(&served.beside("none"), reference, over.path()));
        let said = exits(64, &mut mount(&volume, "other:1", over.path()));
        assert!(said.contains("available images"), "{said}");
        exits(64, &mut mount(&volume, reference, volume.parent().unwrap()));
        exits(73, &mut umount(over.path()));
        // A mount that Larder did not create is refused as well.
        nix::mount::mount(Some("x"), over.path(), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        exits(73, &mut umount(over.path()));
        nix::mount::umount(over.path()).unwrap();
        // The mount point is no proof, not even if Larder mounted something there before.
        let other = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            fs::create_dir(other.path().join(name)).unwrap();
        }
        succeed(&mut mount(&volume, reference, over.path()));
        succeed(&mut umount(over.path()));
        let options = format!("lowerdir={0}/a:{0}/b", other.path().display());
        let flags = MsFlags::MS_RDONLY;
        nix::mount::mount(Some("larder"), over.path(), Some("overlay"), flags, Some(options.as_str()))
            .unwrap();
        let said = exits(73, &mut umount(over.path()));
        assert!(said.contains("umount(8)"), "{said}");
        nix::mount::umount(over.path()).unwrap();
        // A file without an EROFS header is not passed to the kernel.
        let hex = served.images[0].layers[1].diff_id.hex().to_owned();
        let image = volume.join(format!("erofs/sha256/{}/{hex}.erofs", &hex[..2]));
        let mut bytes = fs::read(&image).unwrap();
        bytes[1030] ^= 1;
        fs::write(&image, bytes).unwrap();
        let said = exits(65, &mut mount(&volume, reference, over.path()));
        assert!(said.contains("damaged"), "{said}");
        assert_eq!(mountinfo(), before);
    });
}
