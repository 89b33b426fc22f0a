//! Debian's containerd with Larder as its only snapshotter: fetched layers, running containers, and restarts.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use larder_model::job::LayerFormat;
use larder_testing::image::{Format, Image, busybox};
use larder_testing::layer::LayerBuilder;

use crate::harness::containerd::Containerd;
use crate::harness::served::Served;
use crate::harness::snapshots::Snapshotter;
use crate::harness::{Need, cri, isolated, succeed};

pub(super) const NEEDS: [Need; 4] =
    [Need::Program("containerd"), Need::Program("ctr"), Need::Program("runc"), Need::Program("busybox")];
pub(super) const SIZE: u64 = 256 << 20;
pub(super) const TIMEOUT: Duration = Duration::from_secs(120);

/// Returns an image with a shell, and layers that each contain a file and a file in an implied directory.
pub(super) fn image(name: &str, layers: usize) -> Image {
    let more = (0..layers).map(|number| {
        let content = format!("{name} {number}\n");
        LayerBuilder::new()
            .file(format!("file-{number}"), &content)
            .file(format!("etc/{number}"), &content)
            .gzip()
    });
    Image::builder(Format::Oci).layer(busybox().unwrap()).layers(more.map(Into::into)).build()
}

/// containerd with a snapshotter.
pub(super) struct Node {
    // Dropped first, because it uses the snapshotter.
    pub(super) containerd: Containerd,
    pub(super) snapshotter: Snapshotter,
    /// Part of its container names, because runc's container names are unique on the whole machine.
    number: usize,
}

static NODES: AtomicUsize = AtomicUsize::new(0);

impl Node {
    fn start() -> Self {
        Node::start_with_sandbox("none")
    }

    /// Starts containerd with the snapshotters that the files in `conf.d` of the directory `etc` configure.
    /// Larder's is at the path that they name.
    pub(super) fn start_importing(etc: &Path, sandbox: &str) -> Self {
        let snapshotter = Snapshotter::start();
        snapshotter.link_default_socket();
        Node::of(Containerd::start_importing(etc, sandbox), snapshotter)
    }

    /// Starts containerd with an image for pod sandboxes.
    pub(super) fn start_with_sandbox(image: &str) -> Self {
        let snapshotter = Snapshotter::start();
        Node::of(Containerd::start_with_snapshotter(&snapshotter.socket(), image), snapshotter)
    }

    pub(super) fn of(containerd: Containerd, snapshotter: Snapshotter) -> Self {
        Node { containerd, snapshotter, number: NODES.fetch_add(1, Ordering::Relaxed) }
    }

    pub(super) fn pull(&self, reference: &str) {
        if let Err(status) = cri::pull(&self.containerd.socket(), reference) {
            panic!("pulling {reference}: {status}\n{}", self.snapshotter.log());
        }
    }

    pub(super) fn name(&self, name: &str) -> String {
        format!("larder-{}-{}-{name}", std::process::id(), self.number)
    }

    pub(super) fn run(&self, arguments: &[&str], image: &str, name: &str, script: &str) -> Command {
        let run = ["run", "--snapshotter", "larder"];
        self.containerd.k8s(&[&run, arguments, &[image, &self.name(name), "/bin/sh", "-c", script]].concat())
    }

    /// Returns the output of a script in a container that is removed afterwards.
    pub(super) fn printed(&self, image: &str, script: &str) -> String {
        // ctr sometimes loses the output of a short process. Its exit code is reliable.
        let mut asked = (0..5).map(|_| succeed(&mut self.run(&["--rm"], image, "once", script)));
        asked.find(|printed| !printed.is_empty()).unwrap_or_default()
    }

    /// Kills a detached container, and removes it.
    pub(super) fn end(&self, name: &str) {
        let name = self.name(name);
        self.kill(&name);
        succeed(&mut self.containerd.k8s(&["containers", "rm", &name]));
    }

    /// Kills its process, and keeps the container.
    pub(super) fn kill(&self, name: &str) {
        succeed(&mut self.containerd.k8s(&["tasks", "kill", "--signal", "SIGKILL", name]));
        let deadline = Instant::now() + TIMEOUT;
        while !self.containerd.k8s(&["tasks", "rm", name]).output().unwrap().status.success() {
            assert!(Instant::now() < deadline, "the task did not end");
            sleep(Duration::from_millis(100));
        }
    }

    /// Removes an image with all the names that CRI gives it.
    fn forget(&self, served: &Served, number: usize) {
        let (image, host) = (&served.images[number], served.registry.host());
        let by_digest = format!("{host}/app-{number}@{}", image.manifest.digest);
        let names = [&served.references()[number], &by_digest, &image.config.digest.to_string()];
        succeed(self.containerd.k8s(&["images", "rm", "--sync"]).args(names));
    }

    pub(super) fn until_nothing_is_left(&self) {
        let deadline = Instant::now() + TIMEOUT;
        while !self.snapshotter.client.names(&[]).is_empty() {
            assert!(Instant::now() < deadline, "{:?}", self.snapshotter.client.names(&[]));
            sleep(Duration::from_millis(100));
        }
    }

    fn snapshots(&self) -> usize {
        self.snapshotter.client.list(&[]).unwrap().len()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Leftovers of a failed test; otherwise there are none.
        let _ = self.containerd.k8s(&["tasks", "rm", "--force", &self.name("long")]).output();
    }
}

/// Returns the bytes of layers and of documents that the registry has served since the last call.
pub(super) fn fetched(served: &Served) -> (u64, u64) {
    let layers: u64 = served
        .images
        .iter()
        .flat_map(|image| &image.layers)
        .map(|layer| layer.digest.clone())
        .collect::<std::collections::BTreeSet<_>>()
        .iter()
        .map(|digest| served.registry.served(digest))
        .sum();
    let all = served.registry.served_total();
    served.registry.forget();
    (layers, all - layers)
}

#[case]
fn nothing_of_a_cached_image_is_fetched() {
    isolated(&[&NEEDS[..], &[Need::Erofs]].concat(), || {
        for form in [LayerFormat::Overlay, LayerFormat::Erofs] {
            let served = Served::new([image("cached", 3), image("foreign", 2)]).with(form);
            let (cached, foreign) = (&served.references()[0], &served.references()[1]);
            let volume = served.volume();
            let mut build = Command::new(served.build(&volume, SIZE).get_program());
            // Only the first is in the cache.
            build.args(served.build(&volume, SIZE).get_args().filter(|word| *word != foreign.as_str()));
            succeed(&mut build);
            fetched(&served);
            let node = Node::start();
            let at = node.snapshotter.attach(&volume, "v");

            node.pull(cached);
            let (layers, documents) = fetched(&served);
            assert_eq!(layers, 0, "{form:?}");
            assert!((1..20_000).contains(&documents), "{documents}");
            let printed = node
                .printed(cached, "cat /file-0 /file-1 /file-2 /etc/2; echo new > /etc/new && cat /etc/new");
            assert_eq!(printed, "cached 0\ncached 1\ncached 2\ncached 2\nnew\n");

            // The shell is cached, the rest is not.
            node.pull(foreign);
            let (layers, _) = fetched(&served);
            let want: usize = served.images[1].layers[1..].iter().map(|layer| layer.blob.len()).sum();
            assert_eq!(layers, want as u64);
            assert_eq!(node.printed(foreign, "cat /file-0 /file-1"), "foreign 0\nforeign 1\n");

            // Removed images leave nothing behind.
            node.forget(&served, 0);
            node.forget(&served, 1);
            node.until_nothing_is_left();
            node.snapshotter.detach(&at);
        }
    });
}

#[case]
fn what_is_not_cached_is_pulled_and_stays_when_volumes_go() {
    isolated(&NEEDS, || {
        let served = Served::new([image("cached", 1)]);
        let volume = served.volume();
        succeed(&mut served.build(&volume, SIZE));
        let node = Node::start();
        // From another registry, before a volume is attached.
        let elsewhere = Served::new([image("foreign", 2), image("late", 1)]);
        let [foreign, late] = &elsewhere.references()[..] else { panic!() };
        node.pull(foreign);
        let all: usize = elsewhere.images[0].layers.iter().map(|layer| layer.blob.len()).sum();
        assert_eq!(
            elsewhere.images[0].layers.iter().map(|l| elsewhere.registry.served(&l.digest)).sum::<u64>(),
            all as u64
        );
        let at = node.snapshotter.attach(&volume, "v");
        let cached = &served.references()[0];
        fetched(&served);
        node.pull(cached);
        // The shell, which the cached layer needs, was unpacked from the other registry.
        assert_eq!(fetched(&served).0, 0);
        assert_eq!(node.printed(cached, "cat /file-0"), "cached 0\n");
        node.snapshotter.detach(&at);
        assert_eq!(node.printed(foreign, "cat /file-1; echo x > /x; cat /x"), "foreign 1\nx\n");
        let refused = node.run(&["--rm"], cached, "refused", "true").output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains("not attached"), "{said}");
        // Removed and pulled again it is like any other image.
        node.forget(&served, 0);
        node.pull(cached);
        assert_eq!(fetched(&served).0, served.images[0].layers[1].blob.len() as u64);
        assert_eq!(node.printed(cached, "cat /file-0"), "cached 0\n");
        // ctr can pull as well.
        succeed(&mut node.containerd.k8s(&[
            "images",
            "pull",
            "--plain-http",
            "--snapshotter",
            "larder",
            late,
        ]));
        assert_eq!(node.printed(late, "cat /file-0"), "late 0\n");
    });
}

#[case]
fn a_layer_that_went_is_in_the_way_until_its_image_is_removed() {
    isolated(&NEEDS, || {
        let served = Served::new([image("cached", 1)]);
        let volume = served.volume();
        succeed(&mut served.build(&volume, SIZE));
        // Its shell is the same layer.
        let elsewhere = Served::new([image("foreign", 1)]);
        let (cached, foreign) = (&served.references()[0], &elsewhere.references()[0]);
        let node = Node::start();
        let at = node.snapshotter.attach(&volume, "v");
        node.pull(cached);
        node.snapshotter.detach(&at);
        // containerd has a snapshot of the layer, and would unpack the next one on top of it.
        let refused = cri::pull(&node.containerd.socket(), foreign).unwrap_err();
        assert!(refused.message().contains("not attached"), "{refused}");
        node.forget(&served, 0);
        node.pull(foreign);
        assert_eq!(node.printed(foreign, "cat /file-0"), "foreign 0\n");
    });
}

#[case]
fn ctr_does_not_ask() {
    isolated(&NEEDS, || {
        let served = Served::new([image("cached", 2)]);
        let volume = served.volume();
        succeed(&mut served.build(&volume, SIZE));
        fetched(&served);
        let node = Node::start();
        node.snapshotter.attach(&volume, "v");
        let reference = &served.references()[0];
        // ctr 1.6 unpacks by itself and sends no layer name, so no layer can be recognised.
        let pull = ["images", "pull", "--plain-http", "--snapshotter", "larder", reference];
        succeed(&mut node.containerd.k8s(&pull));
        let all: usize = served.images[0].layers.iter().map(|layer| layer.blob.len()).sum();
        assert_eq!(fetched(&served).0, all as u64);
        assert_eq!(node.printed(reference, "cat /file-0 /file-1"), "cached 0\ncached 1\n");
    });
}

#[case]
fn images_of_many_layers() {
    isolated(&[&NEEDS[..], &[Need::Erofs]].concat(), || {
        for form in [LayerFormat::Overlay, LayerFormat::Erofs] {
            let served = Served::new([image("deep", 119)]).with(form);
            let volume = served.volume();
            succeed(&mut served.build(&volume, SIZE));
            fetched(&served);
            let node = Node::start();
            // A long path is no problem.
            let at = node.snapshotter.attach(&volume, &format!("{}/v", "a-long-name-".repeat(15)));
            let reference = &served.references()[0];
            node.pull(reference);
            assert_eq!(fetched(&served).0, 0);
            let printed = node.printed(reference, "cat /file-0 /file-60 /file-118 /etc/118");
            assert_eq!(printed, "deep 0\ndeep 60\ndeep 118\ndeep 118\n");
            node.forget(&served, 0);
            node.snapshotter.detach(&at);
        }
    });
}

#[case]
fn caches_that_share_layers() {
    isolated(&NEEDS, || {
        let both = [image("shared", 2), image("shared", 3)];
        let served = Served::new(both);
        let references = served.references();
        let node = Node::start();
        let mut places: Vec<PathBuf> = Vec::new();
        for (number, reference) in references.iter().enumerate() {
            let volume = served.beside(&format!("cache-{number}"));
            let build = served.build(&volume, SIZE);
            let mut one = Command::new(build.get_program());
            one.args(build.get_args().filter(|word| {
                *word == reference.as_str() || !references.iter().any(|r| *word == r.as_str())
            }));
            succeed(&mut one);
            places.push(node.snapshotter.attach(&volume, &format!("v{number}")));
        }
        fetched(&served);
        for reference in &references {
            node.pull(reference);
        }
        assert_eq!(fetched(&served).0, 0);
        assert_eq!(node.snapshots(), 4, "shared layers must exist once");
        // The first cache is detached. The second contains all shared layers.
        node.snapshotter.detach(&places[0]);
        assert_eq!(node.printed(&references[0], "cat /file-0 /file-1"), "shared 0\nshared 1\n");
        assert_eq!(node.printed(&references[1], "cat /file-2"), "shared 2\n");
        node.snapshotter.detach(&places[1]);
    });
}

#[case]
fn containers_outlive_the_snapshotter() {
    isolated(&[&NEEDS[..], &[Need::Erofs]].concat(), || {
        for form in [LayerFormat::Overlay, LayerFormat::Erofs] {
            let served = Served::new([image("cached", 2)]).with(form);
            let volume = served.volume();
            succeed(&mut served.build(&volume, SIZE));
            let mut node = Node::start();
            let at = node.snapshotter.attach(&volume, "v");
            let reference = &served.references()[0];
            node.pull(reference);
            let script = "trap 'exit 0' TERM; n=0; while true; do n=$((n+1)); echo $n > /count; cat /file-1 > /dev/null || exit 9; sleep 0.1; done";
            succeed(&mut node.run(&["--detach"], reference, "long", script));
            let exec = |node: &Node, script: &str| {
                let mut exec = node.containerd.k8s(&[
                    "tasks",
                    "exec",
                    "--exec-id",
                    "look",
                    &node.name("long"),
                    "/bin/sh",
                    "-c",
                    script,
                ]);
                succeed(&mut exec)
            };
            let count = |node: &Node| exec(node, "cat /count").trim().parse::<u64>().unwrap_or(0);
            let counts_on = |node: &Node| {
                let (before, deadline) = (count(node), Instant::now() + TIMEOUT);
                while count(node) <= before {
                    assert!(Instant::now() < deadline, "the container made no progress");
                    sleep(Duration::from_millis(100));
                }
            };
            counts_on(&node);
            node.snapshotter.kill();
            counts_on(&node);
            // ctr sometimes loses the output of a short process. Its exit code is reliable.
            let deadline = Instant::now() + TIMEOUT;
            let mut printed = exec(&node, "cat /file-0 /file-1");
            while printed.is_empty() && Instant::now() < deadline {
                printed = exec(&node, "cat /file-0 /file-1");
            }
            assert_eq!(printed, "cached 0\ncached 1\n");
            node.snapshotter.restart();
            counts_on(&node);
            // containerd can need a moment to find it again.
            let deadline = Instant::now() + TIMEOUT;
            while !node.run(&["--rm"], reference, "next", "cat /file-1").output().unwrap().status.success() {
                assert!(
                    Instant::now() < deadline,
                    "no container starts after a restart\n{}",
                    node.snapshotter.log()
                );
                let _ = node.containerd.k8s(&["containers", "rm", &node.name("next")]).output();
                sleep(Duration::from_millis(200));
            }
            node.end("long");
            node.forget(&served, 0);
            node.until_nothing_is_left();
            node.snapshotter.detach(&at);
        }
    });
}
