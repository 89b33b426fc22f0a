//! A daemon whose caches are EROFS images.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::LayerBuilder;

use super::files;
use crate::harness::daemon::{Daemon, ROOMY, Tenant};
use crate::harness::registry::Registry;
use crate::harness::served::{cache, random};
use crate::harness::{Need, isolated, larder, succeed};

const A: Tenant = Tenant("team-a");
const LIMIT: Duration = Duration::from_secs(120);

fn image(seeds: &[u64]) -> Image {
    let layer =
        |seed: &u64| Layer::from(LayerBuilder::new().file(format!("f{seed}"), random(*seed, 6 << 20)).gzip());
    Image::builder(Format::Oci).layers(seeds.iter().map(layer)).build()
}

/// Returns the directories of volumes, sorted by name.
fn volumes(daemon: &Daemon) -> Vec<PathBuf> {
    let Ok(names) = fs::read_dir(daemon.state().join("tenants/team-a/volumes")) else { return Vec::new() };
    let mut found: Vec<_> = names.map(|name| name.unwrap().path()).collect();
    found.sort();
    found
}

#[case]
fn caches_reuse_images_and_go_by_themselves() {
    isolated(&[Need::Program("docker-registry")], || {
        let registry = Registry::open();
        let first = registry.push(&image(&[0, 1, 2]), "team/app", "1");
        let second = registry.push(&image(&[3, 1, 2]), "team/app", "2");
        let daemon = Daemon::start(&[A], &format!("{ROOMY}build.layer_format = 'erofs'\n"));
        let web = daemon.order(A, "web", &[first]);
        daemon.settle(A, &web, "Available", LIMIT);
        let api = daemon.order(A, "api", &[second]);
        daemon.settle(A, &api, "Available", LIMIT);
        let found = volumes(&daemon);
        assert_eq!(found.len(), 2);
        for volume in &found {
            succeed(larder().arg("verify").arg(volume));
            let links: Vec<u64> = files(&volume.join("erofs/sha256"))
                .values()
                .map(|path| fs::metadata(path).unwrap().nlink())
                .collect();
            // Builders are confined. A hard link would let them write to another volume.
            assert_eq!(links, [1; 3]);
        }
        let details = daemon.ask(A, "GET", &format!("/larder/v1/caches/{api}"), None).expect(200).to_string();
        assert_eq!(details.matches(&format!("\"from\":\"{web}\"")).count(), 2, "{details}");
        let path = format!("/v5/imagecaches/{web}");
        daemon.ask(A, "DELETE", &path, None).expect(202);
        let deadline = Instant::now() + LIMIT;
        while daemon.ask(A, "GET", &path, None).0.status != 404 {
            assert!(Instant::now() < deadline, "{}", daemon.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        let found = volumes(&daemon);
        assert_eq!(found.len(), 1);
        succeed(larder().arg("verify").arg(&found[0]));
    });
}

#[case]
fn a_build_keeps_its_form_when_the_configuration_changes() {
    isolated(&[Need::Program("docker-registry")], || {
        let registry = Registry::open();
        let image = registry.push(&image(&[0, 1, 2, 3]), "team/app", "1");
        let mut daemon = Daemon::start(&[A], &format!("{ROOMY}build.layer_format = 'erofs'\n"));
        let id = daemon.order(A, "web", &[image]);
        // Before the first layer is committed, the volume takes the new format.
        let committed = |volume: &PathBuf| {
            fs::read_to_string(volume.join(".larder/journal"))
                .is_ok_and(|journal| journal.contains("sha256:"))
        };
        let begun = || volumes(&daemon).iter().any(committed);
        let deadline = Instant::now() + LIMIT;
        while !begun() {
            assert!(Instant::now() < deadline, "{}", daemon.log());
            std::thread::sleep(Duration::from_millis(2));
        }
        daemon.kill();
        let config = fs::read_to_string(daemon.config()).unwrap();
        fs::write(daemon.config(), config.replace("'erofs'", "'overlay'")).unwrap();
        daemon.restart();
        daemon.settle(A, &id, "Available", LIMIT);
        let content = cache(&volumes(&daemon)[0]).content;
        assert_eq!(content.layer_format, larder_model::job::LayerFormat::Erofs);
    });
}
