//! Layers of attached volumes: found by their chain IDs, mounted directly, released, and rejected if invalid.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::{fs, thread};

use larder_containerd_api::services::snapshots::v1::Kind;
use larder_model::chain::ChainId;
use larder_model::digest::Digest;
use larder_model::job::LayerFormat;
use larder_model::seal::{CacheManifest, Content};
use larder_testing::image::{Format, Image};
use larder_testing::layer::LayerBuilder;
use tonic::Code;

use crate::harness::overlay::View;
use crate::harness::served::{Served, cache};
use crate::harness::snapshots::{Client, Mounted, Snapshotter, TARGET};
use crate::harness::tree::{Tolerance, differences, scan};
use crate::harness::{Need, isolated, succeed};
use crate::images::images;

const SIZE: u64 = 64 << 20;

fn diff_ids(image: &Image) -> Vec<Digest> {
    image.layers.iter().map(|layer| layer.diff_id.clone()).collect()
}

/// Requests the layers of an image. Returns the topmost snapshot if all layers are attached.
fn take(client: &Client, image: &Image) -> Option<String> {
    let mut parent = String::new();
    for chain in ChainId::chain(&diff_ids(image)) {
        parent = client.take(&chain.to_string(), &parent)?;
    }
    Some(parent)
}

fn mounts() -> String {
    fs::read_to_string("/proc/thread-self/mountinfo").unwrap()
}

#[case]
fn layers_of_either_form_are_there_already() {
    isolated(&[Need::Erofs], || {
        let mut served = Served::new(images());
        let reference = served.beside("reference");
        succeed(&mut served.build(&reference, SIZE));
        let want: Vec<_> = served
            .images
            .iter()
            .map(|image| scan(&View::mount(&reference, &diff_ids(image)).path()))
            .collect();
        for form in [LayerFormat::Overlay, LayerFormat::Erofs] {
            served = served.with(form);
            let volume = served.beside(form.word());
            succeed(&mut served.build(&volume, SIZE));
            let mut snapshotter = Snapshotter::start();
            assert_eq!(take(&snapshotter.client, &served.images[0]), None, "not attached");
            let at = snapshotter.attach(&volume, "v");
            let before = mounts();
            let client = &snapshotter.client;
            let tops: Vec<String> = served.images.iter().map(|image| take(client, image).unwrap()).collect();
            let again: Vec<String> = served.images.iter().map(|image| take(client, image).unwrap()).collect();
            assert_eq!(tops, again, "a repeated request must return the same snapshots");
            for (want, top) in want.iter().zip(&tops) {
                let info = client.stat(top).unwrap();
                assert_eq!((info.kind(), info.labels.contains_key(TARGET)), (Kind::Committed, true));
                let usage = client.usage(top).unwrap();
                assert_eq!((usage.size, usage.inodes), (0, 0), "the layer must not use space here");
                let view = Mounted::new(&client.view(&format!("view {top}"), top).unwrap());
                let tolerance = Tolerance { directory_times: true, ..Tolerance::default() };
                let lines = differences(want, &scan(view.path()), tolerance);
                assert!(lines.is_empty(), "{}", lines.join("\n"));
                // Writes on top of a layer go to the snapshotter's own directory.
                let active = Mounted::new(&client.prepare(&format!("run {top}"), top, &[]).unwrap());
                fs::write(active.at("new"), "x").unwrap();
                assert_eq!(client.usage(&format!("run {top}")).unwrap().inodes, 2);
            }
            // After a reboot nothing is mounted. Known layers are mounted again.
            snapshotter.kill();
            for line in mounts().lines().filter(|line| line.contains("/root/l/")) {
                let point = line.split(' ').nth(4).unwrap();
                nix::mount::umount(point).unwrap();
            }
            snapshotter.restart();
            let client = &snapshotter.client;
            let found = scan(Mounted::new(&client.mounts(&format!("view {}", tops[0])).unwrap()).path());
            let tolerance = Tolerance { directory_times: true, ..Tolerance::default() };
            assert!(differences(&want[0], &found, tolerance).is_empty());
            // Children are removed first, as by containerd. Then no file of any layer is left.
            let mut names: Vec<String> =
                client.list(&[]).unwrap().into_iter().map(|info| info.name).collect();
            while let Some(name) = names.pop() {
                client.remove(&name).unwrap();
            }
            assert_eq!(mounts(), before);
            assert_eq!(fs::read_dir(snapshotter.root().join("l")).unwrap().count(), 0);
            snapshotter.detach(&at);
        }
    });
}

#[case]
fn volumes_come_and_go() {
    isolated(&[Need::Erofs], || {
        for form in [LayerFormat::Overlay, LayerFormat::Erofs] {
            let served = Served::new(images()).with(form);
            let (first, second) = (served.beside("first"), served.beside("second"));
            succeed(&mut served.build(&first, SIZE));
            succeed(&mut served.build(&second, SIZE));
            let snapshotter = Snapshotter::start();
            let client = &snapshotter.client;
            let (b, a) = (snapshotter.attach(&second, "b"), snapshotter.attach(&first, "a"));
            let top = take(client, &served.images[0]).unwrap();
            let own = Mounted::new(&client.prepare("own", "", &[]).unwrap());
            let running = Mounted::new(&client.prepare("running", &top, &[]).unwrap());
            let read = |mounted: &Mounted| fs::read_to_string(mounted.at("etc/passwd")).unwrap();
            let passwd = read(&running);

            // A running container continues. It uses the trees of a volume, or files that keep the volume
            // mounted.
            let mut running = Some(running);
            if form == LayerFormat::Erofs {
                assert_eq!(nix::mount::umount(&a), Err(nix::errno::Errno::EBUSY));
                running = None;
            }
            // Another volume with the same layers replaces it.
            snapshotter.detach(&a);
            if let Some(running) = running {
                assert_eq!(read(&running), passwd);
            }
            assert_eq!(read(&Mounted::new(&client.view("one", &top).unwrap())), passwd);
            assert_eq!(take(client, &served.images[0]).unwrap(), top);

            // Without a volume no container can start from the layers, and they are fetched like any other.
            snapshotter.detach(&b);
            let refused = client.view("two", &top).unwrap_err();
            assert_eq!(refused.code(), Code::Unavailable);
            assert!(refused.message().contains("not attached"), "{refused}");
            assert_eq!(client.mounts("running").unwrap_err().code(), Code::Unavailable);
            assert_eq!(take(client, &served.images[0]), None);
            assert_eq!(client.stat(&top).unwrap().kind(), Kind::Committed);
            fs::write(own.at("file"), "a snapshot without a volume continues to work").unwrap();
            assert!(Mounted::new(&client.mounts("own").unwrap()).at("file").exists());

            // The volume can be attached again at another path.
            let c = snapshotter.attach(&first, "elsewhere");
            assert_eq!(read(&Mounted::new(&client.mounts("running").unwrap())), passwd);
            for name in ["one", "running", "own"] {
                client.remove(name).unwrap();
            }
            snapshotter.detach(&c);
        }
    });
}

#[case]
fn a_layer_on_a_parent_that_was_pulled() {
    isolated(&[], || {
        let served = Served::new(images());
        let volume = served.volume();
        succeed(&mut served.build(&volume, SIZE));
        let snapshotter = Snapshotter::start();
        let client = &snapshotter.client;
        let chain = ChainId::chain(&diff_ids(&served.images[1]));
        // The base was pulled from a registry, under a name of containerd.
        let pulled = Mounted::new(&client.prepare("extract", "", &[]).unwrap());
        fs::create_dir(pulled.at("elsewhere")).unwrap();
        fs::write(pulled.at("elsewhere/file"), "x").unwrap();
        drop(pulled);
        client.commit("k8s.io/1/base", "extract", &[]).unwrap();
        snapshotter.attach(&volume, "v");
        let top = client.take(&chain[1].to_string(), "k8s.io/1/base").unwrap();
        let view = Mounted::new(&client.view("view", &top).unwrap());
        assert_eq!(fs::read_to_string(view.at("etc/shared")).unwrap(), "shared");
        assert_eq!(fs::read_to_string(view.at("elsewhere/file")).unwrap(), "x");
        // The same layer on the base of the volume is another snapshot.
        let base = client.take(&chain[0].to_string(), "").unwrap();
        let other = client.take(&chain[1].to_string(), &base).unwrap();
        assert_ne!(top, other);
        // A request for a layer without its base, or for a base on top of another layer, does not match.
        assert_eq!(client.take(&chain[1].to_string(), ""), None);
        assert_eq!(client.take(&chain[0].to_string(), &base), None);
        for odd in ["sha256:zz", "", "sha256:00", "../../etc"] {
            client.prepare(&format!("odd {odd}"), "", &[(TARGET, odd)]).unwrap();
        }
        let missing = client.prepare("x", "none", &[(TARGET, &chain[1].to_string())]).unwrap_err();
        assert_eq!(missing.code(), Code::NotFound);
        let taken = client.prepare("view", "", &[(TARGET, &chain[0].to_string())]).unwrap_err();
        assert_eq!(taken.code(), Code::AlreadyExists);
    });
}

#[case]
fn many_concurrent_requests() {
    isolated(&[Need::Erofs], || {
        let served = Served::new(images()).with(LayerFormat::Erofs);
        let volume = served.volume();
        succeed(&mut served.build(&volume, SIZE));
        let snapshotter = Snapshotter::start();
        snapshotter.attach(&volume, "v");
        let image = &served.images[0];
        let ask = || {
            let client = Client::new(snapshotter.socket());
            let won = client.prepare("same", "", &[]).is_ok();
            (take(&client, image).unwrap(), won)
        };
        let answers: Vec<_> = thread::scope(|scope| {
            let asking: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
            asking.into_iter().map(|asking| asking.join().unwrap()).collect()
        });
        assert_eq!(answers.iter().filter(|(_, won)| *won).count(), 1);
        assert!(answers.iter().all(|(top, _)| *top == answers[0].0), "{answers:?}");
        assert_eq!(snapshotter.client.names(&[]).len(), 1 + image.layers.len());
    });
}

/// Writes a modified `cache.json` with a matching digest.
fn reseal(volume: &Path, change: impl FnOnce(&mut Content)) {
    let mut content = cache(volume).content;
    change(&mut content);
    let manifest = CacheManifest::new(content).unwrap();
    fs::write(volume.join("cache.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
}

#[case]
fn a_hostile_volume_gives_nothing_away() {
    isolated(&[Need::Erofs], || {
        let image = |name: &str| {
            let layer = LayerBuilder::new().file(name, name).gzip();
            Image::builder(Format::Oci).layer(layer.into()).build()
        };
        let mut served = Served::new([image("mine")]);
        let diff_id = diff_ids(&served.images[0]).remove(0);
        let tree = format!("overlay/{}", ChainId::base(&diff_id).hex());
        let hex = diff_id.hex().to_owned();
        let image = format!("erofs/sha256/{}/{hex}.erofs", &hex[..2]);
        let snapshotter = Snapshotter::start();
        let client = &snapshotter.client;
        let secret = served.beside("secret");
        fs::create_dir_all(secret.join("diff")).unwrap();
        fs::write(secret.join("diff/key"), "not for containers").unwrap();
        let wanted = ChainId::base(&diff_id);
        let other = ChainId::base(&Digest::sha256(b"a layer that another client pulls"));
        type Harm<'a> = Box<dyn Fn(&Path) + 'a>;
        let harms: Vec<(&str, LayerFormat, Harm<'_>)> = vec![
            (
                "a symbolic link as the tree",
                LayerFormat::Overlay,
                Box::new(|volume| {
                    fs::remove_dir_all(volume.join(&tree).join("diff")).unwrap();
                    symlink(secret.join("diff"), volume.join(&tree).join("diff")).unwrap();
                }),
            ),
            (
                "a symbolic link in the path",
                LayerFormat::Overlay,
                Box::new(|volume| {
                    fs::remove_dir_all(volume.join(&tree)).unwrap();
                    symlink(&secret, volume.join(&tree)).unwrap();
                }),
            ),
            (
                "a missing tree",
                LayerFormat::Overlay,
                Box::new(|volume| {
                    fs::remove_dir_all(volume.join(&tree)).unwrap();
                }),
            ),
            (
                "an invalid seal",
                LayerFormat::Overlay,
                Box::new(|volume| {
                    let text = fs::read_to_string(volume.join("cache.json")).unwrap();
                    fs::write(volume.join("cache.json"), text.replace("\"entries\": 1", "\"entries\": 2"))
                        .unwrap();
                }),
            ),
            (
                "a layer with the name of another",
                LayerFormat::Overlay,
                Box::new(|volume| {
                    fs::rename(volume.join(&tree), volume.join("overlay").join(other.hex())).unwrap();
                    reseal(volume, |content| content.layers[0].chain_id = other.clone());
                }),
            ),
            (
                "a missing parent",
                LayerFormat::Overlay,
                Box::new(|volume| {
                    reseal(volume, |content| content.layers[0].parent = Some(other.clone()));
                }),
            ),
            (
                "a symbolic link as the image",
                LayerFormat::Erofs,
                Box::new(|volume| {
                    let outside = secret.join("image");
                    fs::rename(volume.join(&image), &outside).unwrap();
                    symlink(outside, volume.join(&image)).unwrap();
                }),
            ),
            (
                "a damaged image",
                LayerFormat::Erofs,
                Box::new(|volume| {
                    let mut bytes = fs::read(volume.join(&image)).unwrap();
                    bytes[1030] ^= 1;
                    fs::write(volume.join(&image), bytes).unwrap();
                }),
            ),
        ];
        for (number, (what, form, harm)) in harms.into_iter().enumerate() {
            served = served.with(form);
            let volume = served.beside(&format!("volume-{number}"));
            succeed(&mut served.build(&volume, SIZE));
            harm(&volume);
            let at = snapshotter.attach(&volume, "v");
            for chain in [&wanted, &other] {
                assert_eq!(client.take(&chain.to_string(), ""), None, "{what}");
            }
            assert_eq!(client.names(&[]), Vec::<String>::new(), "{what}");
            snapshotter.detach(&at);
        }
        assert_eq!(fs::read_dir(snapshotter.root().join("l")).unwrap().count(), 0);
        // An unreadable record does not remove existing layers.
        let volume = served.with(LayerFormat::Overlay);
        let at = volume.beside("sound");
        succeed(&mut volume.build(&at, SIZE));
        let attached = snapshotter.attach(&at, "v");
        assert!(client.take(&wanted.to_string(), "").is_some());
        let record = attached.parent().unwrap().join("state/attached/0.json");
        fs::write(&record, "{").unwrap();
        client.view("view", &wanted.to_string()).unwrap();
        fs::remove_file(record).unwrap();
        client.remove("view").unwrap();
        snapshotter.detach(&attached);
    });
}
