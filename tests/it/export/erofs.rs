//! A volume as one EROFS image: the same from a directory and from a disk, mountable as it is, and
//! importable.

use super::*;
use crate::harness::filesystem::unmount;
use crate::harness::podman::Podman;

const NEEDS: [Need; 3] = [Need::Program("busybox"), Need::Program("mkfs.ext4"), Need::Program("podman")];

#[case]
fn an_image_of_any_volume_comes_back_and_runs() {
    isolated(&NEEDS, || {
        let (served, volume) = sealed();
        let image = served.beside("image");
        let printed = succeed(export(&volume, &image, "erofs", "").args(["--output", "json"]));
        let report: serde_json::Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(report["size"], fs::metadata(&image).unwrap().len());
        succeed(
            Command::new("sha256sum").args(["--check", "image.sha256"]).current_dir(image.parent().unwrap()),
        );
        succeed(larder().arg("verify").arg(&image));
        // The same bytes on a second export, and from a volume that was moved.
        let (elsewhere, again) = (served.beside("elsewhere"), served.beside("again"));
        succeed(Command::new("cp").arg("-a").arg(&volume).arg(&elsewhere));
        succeed(&mut export(&elsewhere, &again, "erofs", ""));
        assert!(fs::read(&image).unwrap() == fs::read(&again).unwrap());

        let back = served.beside("back");
        succeed(&mut import(&image, &back));
        succeed(larder().arg("verify").arg(&back));
        for (format, compression) in ARCHIVES.into_iter().chain([("erofs", "")]) {
            let (one, two) = (served.beside("one"), served.beside("two"));
            succeed(export(&volume, &one, format, compression).arg("--force"));
            succeed(export(&back, &two, format, compression).arg("--force"));
            assert!(fs::read(one).unwrap() == fs::read(two).unwrap(), "{format} {compression}");
        }
        let mounted = served.beside("mounted");
        fs::create_dir(&mounted).unwrap();
        succeed(Command::new("mount").args(["-t", "erofs", "-o", "loop,ro"]).arg(&image).arg(&mounted));
        let printed = Podman::new().run(&mounted, &served.references()[0], &["/bin/sh", "-c", SCRIPT]);
        unmount(&mounted);
        assert_eq!(printed, PRINTED);
    });
}

#[case]
fn a_changed_image_is_never_sealed() {
    isolated(&NEEDS, || {
        let (served, volume) = sealed();
        let (image, back) = (served.beside("image"), served.beside("back"));
        succeed(&mut export(&volume, &image, "erofs", ""));
        let whole = fs::read(&image).unwrap();
        let needle = b"hello from the cache";
        let at = whole.windows(needle.len()).position(|window| window == needle).unwrap();
        let mut changed = whole.clone();
        changed[at] = b'j';
        fs::write(&image, &changed).unwrap();
        let said = exits(65, &mut import(&image, &back));
        assert!(said.contains("but its .sha256 file has"), "{said}");
        fs::remove_file(served.beside("image.sha256")).unwrap();
        for bytes in [&changed[..], &whole[..whole.len() / 2]] {
            fs::write(&image, bytes).unwrap();
            exits(65, &mut import(&image, &back));
            assert!(!back.join("cache.json").exists() && !back.join("disk.img").exists());
        }
        fs::write(&image, &whole).unwrap();
        succeed(&mut import(&image, &back));
        succeed(larder().arg("verify").arg(&back));
    });
}
