//! Volumes whose content does not match their seal, and mount points that are in use.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use larder::node::view;
use larder_model::class::Class;
use larder_model::seal::Content;
use nix::mount::{MsFlags, mount, umount};

use super::{both_forms, images, mountinfo};
use crate::harness::served::cache;
use crate::harness::{Need, isolated};

const NEEDS: [Need; 2] = [Need::Erofs, Need::Program("busybox")];

/// Replaces a file of the volume during `test`.
fn in_place_of(path: &Path, put: impl FnOnce(&Path), test: impl FnOnce()) {
    let kept = path.with_extension("kept");
    fs::rename(path, &kept).unwrap();
    put(path);
    test();
    let _ = fs::remove_dir_all(path);
    let _ = fs::remove_file(path);
    fs::rename(&kept, path).unwrap();
}

#[case]
fn nothing_is_mounted_of_a_volume_that_lies() {
    isolated(&NEEDS, || {
        let (_served, [directories, volume]) = both_forms(images());
        let content = cache(&volume).content;
        let place = tempfile::tempdir().unwrap();
        let at = place.path().join("v");
        fs::create_dir(&at).unwrap();
        let before = mountinfo();
        let refused = |content: &Content, class: Class| {
            let error = view::make(&volume, content, &at).unwrap_err();
            assert_eq!(error.class(), class, "{error}");
            assert_eq!(mountinfo(), before, "{error}");
        };
        let layer =
            content.layers.iter().find(|layer| layer.image.as_ref().unwrap().fixup_size.is_some()).unwrap();
        let hex = layer.diff_id.hex();
        let image: PathBuf = volume.join(format!("erofs/sha256/{}/{hex}.erofs", &hex[..2]));
        let fixup = volume.join(format!("erofs/chain/{}.erofs", layer.chain_id.hex()));
        let split = volume.join(format!("erofs/tar-split/{hex}.gz"));
        let manifest = volume.join(format!("oci/blobs/sha256/{}", content.images[0].manifest.hex()));
        // Symbolic links are refused, even to files that would be accepted.
        for path in [&image, &fixup, &split, &manifest] {
            let aside = path.with_extension("kept");
            in_place_of(
                path,
                |path| symlink(&aside, path).unwrap(),
                || {
                    assert!(view::make(&volume, &content, &at).is_err(), "{}", path.display());
                    assert_eq!(mountinfo(), before);
                },
            );
            in_place_of(
                path,
                |path| fs::create_dir(path).unwrap(),
                || {
                    assert!(view::make(&volume, &content, &at).is_err());
                    assert_eq!(mountinfo(), before);
                },
            );
        }
        in_place_of(
            &image,
            |path| fs::write(path, "no image").unwrap(),
            || refused(&content, Class::Corrupt),
        );
        in_place_of(&manifest, |path| fs::write(path, "{}").unwrap(), || refused(&content, Class::Corrupt));
        let large = |path: &Path| fs::File::create(path).unwrap().set_len(1 << 30).unwrap();
        in_place_of(&manifest, large, || refused(&content, Class::NoSpace));
        let mut other = content.clone();
        other.images[0].chain.swap(0, 1);
        refused(&other, Class::Corrupt);
        let mut other = content.clone();
        other.layers[0].chain_id = other.layers[1].chain_id.clone();
        refused(&other, Class::Corrupt);
        let hex = cache(&directories).content.layers[1].chain_id.hex().to_owned();
        let elsewhere = place.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        in_place_of(
            &directories.join("overlay").join(hex),
            |path| symlink(&elsewhere, path).unwrap(),
            || {
                assert!(view::make(&directories, &cache(&directories).content, &at).is_err());
                assert_eq!(mountinfo(), before);
            },
        );

        view::make(&volume, &content, &at).unwrap();
        view::remove(&at).unwrap();
    });
}

#[case]
fn places_that_are_taken() {
    isolated(&NEEDS, || {
        let (_served, [_, volume]) = both_forms(images());
        let (_more, [_, other]) = both_forms([super::deep(2)]);
        let content = cache(&volume).content;
        let place = tempfile::tempdir().unwrap();
        let at = place.path().join("v");
        assert_eq!(view::make(&volume, &content, &at).unwrap_err().class(), Class::NotFound);
        assert!(!view::is_there(&at).unwrap());
        view::remove(&at).unwrap();
        fs::create_dir(&at).unwrap();
        let inside = view::make(&volume, &content, volume.parent().unwrap()).unwrap_err();
        assert_eq!(inside.class(), Class::Invalid);
        mount(Some("x"), &at, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        assert_eq!(view::make(&volume, &content, &at).unwrap_err().class(), Class::Conflict);
        assert_eq!(view::remove(&at).unwrap_err().class(), Class::Conflict);
        umount(&at).unwrap();
        view::make(&volume, &content, &at).unwrap();
        let error = view::make(&other, &cache(&other).content, &at).unwrap_err();
        assert_eq!(error.class(), Class::Conflict);
        view::remove(&at).unwrap();
        view::make(&other, &cache(&other).content, &at).unwrap();
        view::remove(&at).unwrap();
    });
}
