//! Images of a cache in Debian's containerd without a registry.

mod config;
mod hostile;
mod killed;
mod others;

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use larder_model::job::LayerFormat;
use larder_testing::image::{Format, Image, busybox, push_index};
use larder_testing::layer::LayerBuilder;

use super::containers::{NEEDS, Node, SIZE, TIMEOUT, image};
use crate::harness::cri::Cri;
use crate::harness::served::{Served, cache};
use crate::harness::{Need, exits, isolated, larder, succeed};

impl Node {
    fn preload(&self, at: &Path) -> Command {
        let mut command = larder();
        command.arg("preload").arg(at).arg("--containerd").arg(self.containerd.socket());
        command
    }

    fn forget_cache(&self, at: &Path) -> Command {
        let mut command = self.preload(at);
        command.arg("--forget");
        command
    }

    pub(super) fn cri(&self) -> Cri {
        Cri::new(&self.containerd.socket())
    }

    fn listed(&self, arguments: &[&str]) -> Vec<String> {
        let listed = succeed(&mut self.containerd.k8s(arguments));
        let mut lines: Vec<String> = listed.lines().map(Into::into).collect();
        lines.sort();
        lines
    }

    /// Returns the names of its images.
    pub(super) fn images(&self) -> Vec<String> {
        self.listed(&["images", "ls", "--quiet"])
    }

    /// Returns the digests of its content.
    fn content(&self) -> Vec<String> {
        self.listed(&["content", "ls", "--quiet"])
    }

    fn leases(&self) -> Vec<String> {
        self.listed(&["leases", "ls", "--quiet"])
    }

    /// Waits until CRI, which learns of changes later, lists this many images.
    pub(super) fn until_cri_knows(&self, images: usize) {
        let deadline = Instant::now() + TIMEOUT;
        while self.cri().images().len() != images {
            assert!(Instant::now() < deadline, "{:?}", self.cri().images());
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}

/// A sealed volume. Its registry is stopped.
struct Sealed {
    served: Served,
    volume: PathBuf,
    references: Vec<String>,
}

impl Sealed {
    /// Builds a volume of these images, and of the references that `more` returns.
    fn new(
        form: LayerFormat,
        images: impl IntoIterator<Item = Image>,
        more: impl FnOnce(&mut Served) -> Vec<String>,
    ) -> Self {
        let mut served = Served::new(images).with(form);
        let volume = served.volume();
        let more = more(&mut served);
        succeed(served.build(&volume, SIZE).args(&more));
        let references = served.references().into_iter().chain(more).collect();
        served.registry = larder_testing::registry::Registry::spawn();
        let sealed = Sealed { served, volume, references };
        let deadline = Instant::now() + TIMEOUT;
        while TcpStream::connect(sealed.host()).is_ok() {
            assert!(Instant::now() < deadline, "the registry still answers");
        }
        sealed
    }

    fn host(&self) -> &str {
        self.references[0].split_once('/').unwrap().0
    }

    fn image(&self, number: usize) -> &Image {
        &self.served.images[number]
    }
}

/// Returns an image for pod sandboxes.
pub(super) fn pause() -> Image {
    Image::builder(Format::Oci)
        .layer(busybox().unwrap())
        .command(&["/bin/sh", "-c", "trap 'exit 0' TERM; while true; do sleep 1 & wait; done"])
        .build()
}

#[case]
fn preloaded_images_need_no_registry() {
    isolated(&[&NEEDS[..], &[Need::Erofs]].concat(), || {
        for form in [LayerFormat::Overlay, LayerFormat::Erofs] {
            let foreign = Image::builder(Format::Oci)
                .platform("linux/s390x".parse().unwrap())
                .layer(LayerBuilder::new().file("other", "x").gzip().into())
                .build();
            let mut index = String::new();
            let sealed = Sealed::new(form, [pause(), image("cached", 3), image("many", 2)], |served| {
                let many = served.images[2].clone();
                let made =
                    push_index(&mut served.registry, Format::Oci, &[&foreign, &many], "multi", "1").unwrap();
                index = made.digest.to_string();
                let pinned = served.images[1].manifest.digest.to_string();
                let host = served.registry.host();
                vec![format!("{host}/multi:1"), format!("{host}/app-1@{pinned}")]
            });
            let mut node = Node::start_with_sandbox(&sealed.references[0]);
            let at = node.snapshotter.attach(&sealed.volume, "v");

            let said = succeed(&mut node.preload(&at));
            assert!(said.lines().all(|line| line.ends_with(": registered")), "{said}");
            assert!(node.leases().is_empty());
            let again = succeed(&mut node.preload(&at));
            assert!(again.lines().all(|line| line.ends_with(": already registered")), "{again}");
            assert_eq!(said.lines().count(), node.images().len());

            node.until_cri_knows(3);
            for round in ["at once", "collected", "restarted"] {
                match round {
                    "collected" => {
                        drop(succeed(&mut node.containerd.k8s(&["content", "prune", "references"])))
                    }
                    "restarted" => node.containerd.restart(),
                    _ => {}
                }
                let (cri, host) = (node.cri(), sealed.host());
                for (number, tag) in [(0, "app-0:1"), (1, "app-1:1"), (2, "app-2:1"), (2, "multi:1")] {
                    let (made, tag) = (sealed.image(number), format!("{host}/{tag}"));
                    let repository = tag.rsplit_once(':').unwrap().0;
                    let id = made.config.digest.to_string();
                    let mut digests = vec![format!("{repository}@{}", made.manifest.digest)];
                    if repository.ends_with("multi") {
                        digests.push(format!("{repository}@{index}"));
                    }
                    for name in digests.iter().chain([&tag, &id]) {
                        let found = cri.image(name).unwrap_or_else(|| panic!("{round}: {name}"));
                        assert_eq!(found.id, id, "{round}");
                        assert!(found.repo_tags.contains(&tag), "{round}: {found:?}");
                        assert!(
                            digests.iter().all(|digest| found.repo_digests.contains(digest)),
                            "{found:?}"
                        );
                    }
                }
                assert_eq!(cri.images().len(), 3, "{round}");
                for (reference, name) in [
                    (&sealed.references[1], "cached"),
                    (&sealed.references[3], "many"),
                    (&sealed.references[4], "cached"),
                ] {
                    let printed =
                        node.printed(reference, "cat /file-0 /file-1 /etc/1; echo x > /x && cat /x");
                    assert_eq!(printed, format!("{name} 0\n{name} 1\n{name} 1\nx\n"), "{round}");
                }
                let (logs, name) = (tempfile::tempdir().unwrap(), node.name(&round.replace(' ', "-")));
                let pod = cri.pod(&name, logs.path());
                let said = cri.run(&pod, &name, logs.path(), &sealed.references[1], "cat /file-2");
                assert_eq!(said, ["cached 2"], "{round}");
                cri.end(&pod);
            }
            // CRI 1.6 does not report the label itself.
            let labelled = succeed(&mut node.containerd.k8s(&["images", "ls"]));
            let pinned = labelled.lines().skip(1).filter(|line| {
                line.contains("io.cri-containerd.pinned=pinned")
                    && line.contains("io.cri-containerd.image=managed")
            });
            assert_eq!(pinned.count(), said.lines().count(), "{labelled}");
            // Manifests and configs, but no layer.
            assert_eq!(node.content().len(), 7);

            succeed(&mut node.forget_cache(&at));
            assert!(node.images().is_empty() && node.content().is_empty(), "{:?}", node.content());
            node.until_nothing_is_left();
            node.until_cri_knows(0);
            assert_eq!(succeed(&mut node.forget_cache(&at)), "");
            node.snapshotter.detach(&at);
        }
    });
}

#[case]
fn images_in_use_are_not_removed() {
    isolated(&NEEDS, || {
        let sealed = Sealed::new(LayerFormat::Overlay, [image("cached", 2), pause()], |_| Vec::new());
        let node = Node::start_with_sandbox(&sealed.references[1]);
        let at = node.snapshotter.attach(&sealed.volume, "v");
        succeed(&mut node.preload(&at));
        let before = node.images();
        let script = "trap 'exit 0' TERM; while true; do sleep 1 & wait; done";
        succeed(&mut node.run(&["--detach"], &sealed.references[0], "long", script));
        let said = exits(75, &mut node.forget_cache(&at));
        assert!(said.contains(&format!("container {}", node.name("long"))), "{said}");
        node.kill(&node.name("long"));
        // The container does not run, but can be started again.
        exits(75, &mut node.forget_cache(&at));
        succeed(&mut node.containerd.k8s(&["containers", "rm", &node.name("long")]));
        // A snapshot without a container is in use as well.
        let base = cache(&sealed.volume).content.images[0].chain[0].to_string();
        let snapshots = |arguments: &[&str]| {
            node.containerd.k8s(&[&["snapshots", "--snapshotter", "larder"], arguments].concat())
        };
        let deadline = Instant::now() + TIMEOUT;
        loop {
            succeed(&mut snapshots(&["view", "looked-at", &base]));
            // Without this label, containerd can collect it.
            let mut hold = snapshots(&["label", "looked-at", "containerd.io/gc.root=held"]);
            if hold.output().unwrap().status.success() {
                break;
            }
            assert!(Instant::now() < deadline, "containerd collected the snapshot every time");
        }
        let said = exits(75, &mut node.forget_cache(&at));
        assert!(said.contains("snapshot looked-at in namespace k8s.io"), "{said}");
        succeed(&mut snapshots(&["rm", "looked-at"]));
        let logs = tempfile::tempdir().unwrap();
        let pod = node.cri().pod(&node.name("pod"), logs.path());
        exits(75, &mut node.forget_cache(&at));
        node.cri().end(&pod);
        assert_eq!(node.images(), before);
        succeed(&mut node.forget_cache(&at));
        assert!(node.images().is_empty());
        node.until_nothing_is_left();
        node.snapshotter.detach(&at);
    });
}
