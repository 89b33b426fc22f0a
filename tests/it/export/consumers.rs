//! Consumers of the archives.

use super::*;
use crate::harness::containerd::Containerd;
use crate::harness::podman::Podman;

#[case]
fn podman_loads_and_runs_every_archive() {
    isolated(&["busybox", "podman"].map(Need::Program), || {
        let (served, volume) = sealed();
        let reference = &served.references()[0];
        for (format, compression) in ARCHIVES {
            let archive = served.beside("archive");
            succeed(export(&volume, &archive, format, compression).arg("--force"));
            let podman = Podman::new();
            let loaded = podman.load(&archive);
            assert!(served.references().iter().all(|name| loaded.contains(name)), "{format} {loaded}");
            assert_eq!(
                podman.run_own(reference, &["/bin/sh", "-c", SCRIPT]),
                PRINTED,
                "{format} {compression}"
            );
        }
        // podman reads only one image of a layout, and names it by the path.
        let layout = served.beside("layout");
        succeed(export(&volume, &layout, "oci-layout", "gzip").args(["--image", reference]));
        let podman = Podman::new();
        podman.load(&layout);
        assert_eq!(podman.run_own("localhost/layout", &["/bin/sh", "-c", SCRIPT]), PRINTED);
    });
}

#[case]
fn containerd_imports_and_runs_every_archive() {
    isolated(&["busybox", "containerd", "ctr", "runc"].map(Need::Program), || {
        let (served, volume) = sealed();
        let containerd = Containerd::start();
        for (format, compression) in ARCHIVES {
            let archive = served.beside("archive");
            succeed(export(&volume, &archive, format, compression).arg("--force"));
            containerd.import(&archive);
            let printed = containerd.run_once(&served.references()[0], &["/bin/sh", "-c", SCRIPT]);
            assert_eq!(printed, PRINTED, "{format} {compression}");
        }
    });
}

#[case]
fn skopeo_copies_every_archive_with_its_diff_ids() {
    isolated(&["busybox", "skopeo"].map(Need::Program), || {
        let (served, volume) = sealed();
        for (format, compression) in ARCHIVES.into_iter().chain([("oci-layout", "zstd")]) {
            let archive = served.beside(&format!("{format}-{compression}"));
            succeed(&mut export(&volume, &archive, format, compression));
            let transport = if format == "oci-layout" { "oci" } else { format };
            for (number, reference) in served.references().iter().enumerate() {
                let copied = served.beside(&format!("{format}-{compression}-{number}"));
                let from = format!("{transport}:{}:{reference}", archive.display());
                skopeo::copy(&from, &format!("oci:{}:copy", copied.display()));
                let want: Vec<_> = served.images[number].layers.iter().map(|l| l.diff_id.clone()).collect();
                assert_eq!(skopeo::diff_ids(&copied, 0), want, "{format} {compression}");
            }
        }
    });
}
