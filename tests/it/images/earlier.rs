//! Volumes that earlier versions sealed.

use std::fs;
use std::path::Path;

use larder_model::digest::Digest;
use larder_model::job::LayerFormat;
use larder_model::seal::{CacheManifest, Content};
use larder_testing::image::{Format, Image};
use larder_testing::layer::LayerBuilder;

use crate::harness::overlay::View;
use crate::harness::served::{Served, cache};
use crate::harness::tree::scan;
use crate::harness::{Need, exits, isolated, larder, succeed};

fn reseal(volume: &Path, change: impl FnOnce(&mut Content)) {
    let mut content = cache(volume).content;
    change(&mut content);
    let sealed = CacheManifest::new(content).unwrap();
    fs::write(volume.join("cache.json"), serde_json::to_vec(&sealed).unwrap()).unwrap();
}

/// In earlier versions the time of a lower directory alone caused no fixup image, and an implied directory
/// had time 0.
#[case]
fn without_the_times_of_implied_directories() {
    isolated(&[Need::Erofs], || {
        let base = LayerBuilder::new().mtime(1_600_000_000).dir("d").file("d/a", "a");
        let top = LayerBuilder::new().file("d/b", "b");
        let image = Image::builder(Format::Oci).layers([base.gzip().into(), top.gzip().into()]).build();
        let served = Served::new([image]).with(LayerFormat::Erofs);
        let volume = served.volume();
        succeed(&mut served.build(&volume, 64 << 20));
        succeed(larder().arg("verify").arg(&volume));
        let diff_ids: Vec<Digest> =
            served.images[0].layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let time = || scan(&View::mount_images(&volume, &diff_ids).path())["d"].mtime;
        assert_eq!(time(), Some((1_600_000_000, 0)));

        let layer = cache(&volume).content.layers[1].clone();
        assert!(layer.image.as_ref().unwrap().fixup_size.is_some());
        fs::remove_file(volume.join(format!("erofs/chain/{}.erofs", layer.chain_id.hex()))).unwrap();
        exits(65, larder().arg("verify").arg(&volume));
        // The inherited directories record which of the two rules the volume follows, so that no volume
        // follows half of each.
        reseal(&volume, |content| content.layers[1].image.as_mut().unwrap().fixup_size = None);
        exits(65, larder().arg("verify").arg(&volume));
        reseal(&volume, |content| content.layers[1].settled.inherited.clear());
        succeed(larder().arg("verify").arg(&volume));
        assert_eq!(time(), Some((0, 0)));
    });
}
