//! Volumes whose content does not match their seal, and containerds that are not configured: nothing is
//! changed.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;

use larder_model::job::LayerFormat;

use super::super::containers::{NEEDS, Node, image};
use super::Sealed;
use crate::harness::containerd::Containerd;
use crate::harness::served::cache;
use crate::harness::{exits, isolated, larder, succeed};

#[case]
fn a_volume_with_another_document_is_refused() {
    isolated(&NEEDS, || {
        let sealed =
            Sealed::new(LayerFormat::Overlay, [image("first", 1), image("cached", 1)], |_| Vec::new());
        let node = Node::start_with_sandbox("none");
        let at = node.snapshotter.attach(&sealed.volume, "v");
        let second = &cache(&sealed.volume).content.images[1];
        for digest in [&second.manifest, &second.config] {
            let path = sealed.volume.join("oci/blobs/sha256").join(digest.hex());
            let whole = fs::read(&path).unwrap();
            let changes: [&dyn Fn(&Path); 5] = [
                &|path| fs::write(path, [&whole[..], b" "].concat()).unwrap(),
                &|path| File::create(path).unwrap().set_len(1 << 30).unwrap(),
                &|_| {},
                &|path| symlink("/etc/passwd", path).unwrap(),
                &|path| fs::create_dir(path).unwrap(),
            ];
            for change in changes {
                fs::remove_file(&path).unwrap();
                change(&path);
                let said = exits(65, &mut node.preload(&at));
                assert!(said.contains("is damaged") && said.contains(digest.hex()), "{said}");
                // The first image is not registered either.
                assert!(node.images().is_empty() && node.content().is_empty() && node.leases().is_empty());
                if path.is_dir() { fs::remove_dir(&path) } else { Ok(()) }.unwrap();
                fs::remove_file(&path).ok();
                fs::write(&path, &whole).unwrap();
            }
        }
        succeed(&mut node.preload(&at));
        succeed(&mut node.forget_cache(&at));
    });
}

#[case]
fn missing_setup_is_reported() {
    isolated(&NEEDS, || {
        let sealed = Sealed::new(LayerFormat::Overlay, [image("cached", 1)], |_| Vec::new());
        let preload = |socket: &Path| {
            let mut command = larder();
            command.arg("preload").arg(&sealed.volume).arg("--containerd").arg(socket);
            command
        };
        let said = exits(69, &mut preload(Path::new("/nowhere/containerd.sock")));
        assert!(said.contains("/nowhere/containerd.sock") && said.contains("is it running"), "{said}");
        let plain = Containerd::start();
        let said = exits(64, &mut preload(&plain.socket()));
        assert!(said.contains("no snapshotter \"larder\"") && said.contains("restart containerd"), "{said}");
        // Nothing can be in use, and there is nothing to remove.
        succeed(preload(&plain.socket()).arg("--forget"));
        drop(plain);

        let mut node = Node::start_with_sandbox("none");
        let said = exits(64, &mut node.preload(&sealed.volume));
        assert!(said.contains("is the volume attached"), "{said}");
        assert!(node.content().is_empty() && node.leases().is_empty());
        node.until_nothing_is_left();
        node.snapshotter.kill();
        let said = exits(69, &mut node.preload(&sealed.volume));
        assert!(said.contains("is `larder snapshotter` running"), "{said}");
        node.snapshotter.restart();
    });
}
