//! `larder node`: the real program on nodes whose kubelet mounts volumes, and the daemon that offers
//! snapshots to it.
//!
//! A disk of the fake storage is a directory of this machine, and the kubelet mounts that directory. The
//! modules of `larder_fake_kubernetes` describe the rest: claims, scheduling, affinity, the order of pods,
//! mounts and attachments, Pod Security, access control, and the garbage collector.

mod containerd;
mod crash;
mod faults;
mod required;
mod rights;

use std::fs;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use larder::kubernetes::crd::ImageCache;
use larder_model::chain::ChainId;
use larder_model::image_cache::Status;
use larder_model::job::LayerFormat;
use larder_sys::clock::Clock as _;
use larder_sys::clock::fake::FakeClock;
use serde_json::json;

use crate::harness::agent::Agent;
use crate::harness::cluster::{Running, VOLUMES, World};
use crate::harness::prometheus::{Job, Prometheus};
use crate::harness::{Need, isolated};

/// A world with a daemon that offers snapshots to nodes, and the image cache `web`.
struct Scene {
    world: World,
    daemon: Running,
}

impl Scene {
    fn with(world: Option<World>, prepare: impl FnOnce(&mut World)) -> Option<Self> {
        let mut world = world?;
        world.install_node_objects();
        prepare(&mut world);
        let daemon = world.daemon();
        let scene = Scene { world, daemon };
        scene.cache("web", |_| {});
        Some(scene)
    }

    fn new() -> Option<Self> {
        Scene::with(World::faked(), |_| {})
    }

    /// Creates an image cache of the team, and waits until it is offered to nodes.
    fn cache(&self, name: &str, change: impl FnOnce(&mut ImageCache)) -> ImageCache {
        let mut object = self.world.object(name);
        change(&mut object);
        self.world.apply(&object);
        self.offered(name, 1)
    }

    /// Waits until this volume of the image cache is offered to nodes.
    fn offered(&self, name: &str, generation: u32) -> ImageCache {
        self.world.until(&format!("{name} is offered to nodes"), || {
            let object: ImageCache = self.world.get(&self.world.team, name)?;
            let status = object.status.as_ref()?;
            assert_ne!(status.phase, "Failed", "{:?}", status.message);
            let ready = status.copies.iter().any(|copy| copy.namespace == VOLUMES && copy.ready);
            (ready && status.content.as_ref()?.generation == generation).then_some(object)
        })
    }

    fn agent(&self, node: &str, more: &str) -> Agent {
        Agent::start(self.world.fake(), node, more)
    }

    /// Creates a pod that runs on a node, or waits there for its image.
    fn pod(&self, namespace: &str, name: &str, node: &str, annotation: Option<&str>, image: &str) {
        let annotations = annotation.map_or(json!({}), |text| json!({"larder.dev/image-cache": text}));
        let pod = json!({
            "metadata": {"name": name, "annotations": annotations},
            "spec": {
                "nodeName": node,
                "containers": [{"name": "app", "image": image, "args": ["node", "hold"]}],
            },
        });
        let pod: Pod = serde_json::from_value(pod).unwrap();
        self.world.wait(self.world.api::<Pod>(namespace).create(&PostParams::default(), &pod)).unwrap();
    }

    fn remove_pod(&self, namespace: &str, name: &str) {
        let now = DeleteParams::default().grace_period(0);
        self.world.wait(self.world.api::<Pod>(namespace).delete(name, &now)).unwrap();
    }

    fn until<T>(&self, agent: &Agent, what: &str, probe: impl FnMut() -> Option<T>) -> T {
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.world.until(what, probe)));
        found.unwrap_or_else(|panic| {
            eprintln!("the log of the agent:\n{}", agent.log());
            std::panic::resume_unwind(panic)
        })
    }

    /// Waits until `count` volumes are attached.
    fn attached(&self, agent: &Agent, count: usize) {
        self.until(agent, &format!("{count} attached"), || (agent.attached().len() == count).then_some(()));
    }

    fn claims(&self) -> Vec<PersistentVolumeClaim> {
        self.world.wait(self.world.api(VOLUMES).list(&ListParams::default())).unwrap().items
    }

    fn holders(&self) -> Vec<Pod> {
        self.world.wait(self.world.api(VOLUMES).list(&ListParams::default())).unwrap().items
    }

    /// Waits until no object of any node is left. Checks that no disk was detached while it was mounted.
    fn nothing_left(&self, agent: &Agent) {
        self.attached(agent, 0);
        self.until(agent, "no object of the node is left", || {
            (self.claims().is_empty() && self.holders().is_empty()).then_some(())
        });
        assert_eq!(std::fs::read_dir(agent.at("icv")).unwrap().count(), 0);
        assert_eq!(self.world.fake().unplugged_disks(), 0, "a disk was detached while it was in use");
    }

    /// Waits for an event with this reason about an object, and returns its message.
    fn told(&self, agent: &Agent, namespace: &str, name: &str, reason: &str) -> String {
        self.until(agent, &format!("{reason} of {namespace}/{name}"), || {
            let events = self.world.fake().peek_all("events.k8s.io", "events", namespace);
            let found = events
                .into_iter()
                .find(|event| event["regarding"]["name"] == name && event["reason"] == reason)?;
            Some(found["note"].as_str().unwrap().to_owned())
        })
    }

    /// Returns the chain IDs of the image, from its base.
    fn chains(&self) -> Vec<String> {
        let layers = &self.world.served.images[0].layers;
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        ChainId::chain(&diff_ids).iter().map(ToString::to_string).collect()
    }

    /// Requests the layers of the image as containerd does. Returns the topmost snapshot if all layers are
    /// attached.
    fn take(&self, agent: &Agent) -> Option<String> {
        self.until(agent, "the snapshotter answers", || agent.client.list(&["name==none"]).ok());
        let mut parent = String::new();
        for chain in self.chains() {
            parent = agent.client.take(&chain, &parent)?;
        }
        Some(parent)
    }

    fn annotate(&self, name: &str, text: &str) {
        let patch = json!({"metadata": {"annotations": {"larder.dev/image-cache": text}}});
        let api = kube::Api::<k8s_openapi::api::core::v1::Namespace>::all(self.world.admin());
        self.world.wait(api.patch(name, &PatchParams::default(), &Patch::Merge(&patch))).unwrap();
    }
}

#[case]
fn a_pod_requests_a_cache_and_containerd_gets_its_layers() {
    isolated(&[Need::Erofs], || {
        for form in [LayerFormat::Overlay, LayerFormat::Erofs] {
            let Some(scene) = Scene::with(World::faked(), |world| world.config.build.layer_format = form)
            else {
                return;
            };
            let agent = scene.agent("node-a", "keep_minutes = 0");
            scene.until(&agent, "the snapshotter answers", || agent.client.list(&[]).ok());
            assert_eq!(scene.take(&agent), None, "nothing is attached");
            scene.pod(&scene.world.team, "app", "node-a", Some("web"), "larder:1");
            let told = scene.told(&agent, &scene.world.team, "app", "ImageCacheAttached");
            assert!(told.contains(&format!("{}/web", scene.world.team)), "{told}");
            let top = scene.take(&agent).expect("the layers are not attached");

            // The holder pod runs on this node as an unprivileged user, and only reads.
            let (claims, holders) = (scene.claims(), scene.holders());
            assert_eq!((claims.len(), holders.len()), (1, 1));
            let spec = holders[0].spec.as_ref().unwrap();
            assert_eq!(spec.node_name.as_deref(), Some("node-a"));
            let size = &claims[0]
                .spec
                .as_ref()
                .unwrap()
                .resources
                .as_ref()
                .unwrap()
                .requests
                .as_ref()
                .unwrap()["storage"];
            assert_eq!(size.0, (20_u64 << 30).to_string());
            assert_eq!(
                claims[0].annotations()["larder.dev/image-cache"],
                format!("{}/web", scene.world.team)
            );

            // The volume stays attached while a container uses it, even if no pod needs it.
            agent.client.prepare("container", &top, &[]).unwrap();
            scene.remove_pod(&scene.world.team, "app");
            scene.until(&agent, "it waits", || agent.log().contains("in use").then_some(()));
            std::thread::sleep(Duration::from_secs(2));
            assert_eq!((agent.attached().len(), scene.holders().len()), (1, 1));
            assert!(scene.take(&agent).is_some(), "it must stay attached");
            agent.client.remove("container").unwrap();
            scene.nothing_left(&agent);
            assert_eq!(agent.client.view("view", &top).unwrap_err().code(), tonic::Code::Unavailable);
        }
    });
}

#[case]
fn requests_by_pod_and_by_namespace() {
    isolated(&[], || {
        let Some(scene) = Scene::new() else { return };
        let (team, other) = (scene.world.team.clone(), scene.world.other.clone());
        let image = scene.world.images().remove(0);
        let agent = scene.agent("node-a", "keep_minutes = 0\npending_timeout_minutes = 0");
        // Another namespace cannot use it, neither by name nor by its images.
        scene.pod(&other, "thief", "node-a", Some(&format!("{team}/web")), "larder:1");
        scene.pod(&other, "guess", "node-a", Some("required"), &image);
        let told = scene.told(&agent, &other, "thief", "ImageCacheRefused");
        assert!(told.contains("there is no image cache"), "{told}");
        let told = scene.told(&agent, &other, "guess", "ImageCacheRefused");
        assert!(told.contains("required"), "{told}");
        assert!(scene.claims().is_empty() && agent.attached().is_empty());
        // It can when the image cache is shared and the namespace accepts that.
        let share = Patch::Merge(json!({"spec": {"share": [other]}}));
        let objects = scene.world.api::<ImageCache>(&team);
        scene.world.wait(objects.patch("web", &PatchParams::default(), &share)).unwrap();
        scene.until(&agent, "the other namespace does not accept it", || {
            let status = scene.world.get::<ImageCache>(&team, "web")?.status?;
            status.copies.into_iter().find(|copy| copy.namespace == other && copy.message.is_some())
        });
        std::thread::sleep(Duration::from_secs(1));
        assert!(scene.claims().is_empty() && agent.attached().is_empty());
        scene.world.accept(&other, &team);
        scene.told(&agent, &other, "thief", "ImageCacheAttached");
        scene.told(&agent, &other, "guess", "ImageCacheAttached");
        scene.attached(&agent, 1);
        scene.remove_pod(&other, "thief");
        scene.remove_pod(&other, "guess");
        scene.nothing_left(&agent);
        // A namespace can request caches for its pods, and by name before the pods exist.
        scene.annotate(&team, "auto");
        scene.pod(&team, "plain", "node-a", None, &image);
        scene.told(&agent, &team, "plain", "ImageCacheAttached");
        scene.remove_pod(&team, "plain");
        scene.nothing_left(&agent);
        scene.annotate(&team, "web");
        scene.attached(&agent, 1);
    });
}

#[case]
fn attached_before_any_pod_and_kept_after_the_last() {
    isolated(&[Need::Program("prometheus")], || {
        let Some(scene) = Scene::new() else { return };
        let team = scene.world.team.clone();
        scene.cache("other", |_| {});
        let mut agent = scene.agent("node-a", &format!("caches = ['{team}/web']\nlisten = '127.0.0.1:0'"));
        scene.attached(&agent, 1);
        assert!(scene.take(&agent).is_some());
        scene.pod(&team, "app", "node-a", Some("other"), "larder:1");
        scene.attached(&agent, 2);
        scene.remove_pod(&team, "app");
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(agent.attached().len(), 2, "the volumes must stay for a while");
        // The state, for the kubelet and for Prometheus.
        let log = agent.log();
        let started = log.lines().find(|line| line.contains("managing image caches")).unwrap();
        let field = |name: &str| {
            let rest =
                started.split_once(&format!(" {name}=")).unwrap_or_else(|| panic!("{name}: {started}")).1;
            rest.split_whitespace().next().unwrap().to_owned()
        };
        assert!(field("version").contains(env!("CARGO_PKG_VERSION")), "{started}");
        assert!(!field("state").is_empty() && field("config").contains(".toml"), "{started}");
        let address = field("health").parse().unwrap();
        let ask = |path: &str| {
            let answer = crate::harness::http::send(address, "GET", path, &[], &[]).unwrap();
            (answer.status, String::from_utf8(answer.body).unwrap())
        };
        assert_eq!((ask("/healthz").0, ask("/readyz").0, ask("/pods").0), (200, 200, 404));
        let metrics = ask("/metrics").1;
        assert!(metrics.contains("larder_node_caches{state=\"attached\"} 2\n"), "{metrics}");
        assert!(metrics.contains("larder_node_attach_duration_seconds_count 2\n"), "{metrics}");
        let prometheus = Prometheus::start(&[Job { name: "node", address, token: None }]);
        assert_eq!(prometheus.query("up==1").len(), 1);
        assert_eq!(prometheus.query("larder_node_caches{state=\"attached\"}")[0].1, 2.0);
        // Stopping the agent leaves volumes attached.
        agent.process().signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(agent.process().code_within(Duration::from_secs(30)), Some(0), "{}", agent.log());
        assert_eq!((agent.attached().len(), scene.holders().len()), (2, 2));
    });
}

#[case]
fn a_node_is_tainted_until_its_image_caches_are_attached() {
    isolated(&[], || {
        let Some(scene) = Scene::new() else { return };
        for object in crate::harness::cluster::shipped("node/readiness/rbac.yaml") {
            scene.world.fake().install(&object);
        }
        let nodes = kube::Api::<Node>::all(scene.world.admin());
        let taints = json!({"spec": {"taints": [
            {"key": "readiness.k8s.io/larder.image-caches", "effect": "NoSchedule"},
            {"key": "other", "effect": "NoSchedule"},
        ]}});
        scene.world.wait(nodes.patch("node-a", &PatchParams::default(), &Patch::Merge(&taints))).unwrap();
        let node = || scene.world.wait(nodes.get("node-a")).unwrap();
        let condition = || {
            let conditions = node().status?.conditions?;
            let ours = conditions.into_iter().find(|one| one.type_ == "larder.dev/ImageCachesAttached")?;
            Some((ours.status, ours.message?))
        };
        let tainted = |key: &str| node().spec.unwrap().taints.unwrap().iter().any(|taint| taint.key == key);
        let team = scene.world.team.clone();
        let agent = scene.agent(
            "node-a",
            &format!("caches = ['{team}/web', '{team}/late']\nreadiness = true\nkeep_minutes = 0"),
        );
        scene.attached(&agent, 1);
        let late = format!("not attached: {team}/late");
        scene.until(&agent, "one is pending", || condition().filter(|(_, message)| *message == late));
        assert!(tainted("readiness.k8s.io/larder.image-caches"));
        let label = |name: &str| node().labels().get(&format!("cache.larder.dev/{team}.{name}")).cloned();
        let digest = scene.offered("web", 1).status.unwrap().content.unwrap().digest;
        assert!(digest.contains(&label("web").unwrap()) && label("late").is_none());
        scene.cache("late", |_| {});
        scene.until(&agent, "all are attached", || condition().filter(|(status, _)| status == "True"));
        scene.until(&agent, "the taint is gone", || {
            (!tainted("readiness.k8s.io/larder.image-caches")).then_some(())
        });
        assert!(tainted("other") && label("late").is_some());
        // The label is removed together with the image cache.
        let caches = scene.world.api::<ImageCache>(&team);
        scene.world.wait(caches.delete("late", &DeleteParams::default())).unwrap();
        scene.until(&agent, "the label is gone", || label("late").is_none().then_some(()));
    });
}

#[case]
fn a_newer_volume_takes_the_place_of_an_older_one() {
    isolated(&[], || {
        let Some(scene) = Scene::new() else { return };
        // A newer volume of the same image cache does not count towards the limit.
        let agent = scene.agent("node-a", "max_caches = 1");
        scene.pod(&scene.world.team, "app", "node-a", Some("web"), "larder:1");
        scene.attached(&agent, 1);
        let before = agent.attached();
        let top = scene.take(&agent).unwrap();
        agent.client.prepare("old", &top, &[]).unwrap();
        let object: ImageCache = scene.world.get(&scene.world.team, "web").unwrap();
        let id = object.uid().unwrap().parse().unwrap();
        scene.daemon.wait(scene.daemon.service.refresh(&scene.world.tenant(), id)).unwrap();
        scene.offered("web", 2);
        scene.until(&agent, "the newer volume is attached, too", || {
            (agent.attached().len() == 2).then_some(())
        });
        // Running containers use the older volume, and new ones do not. So the older volume can be released
        // eventually.
        std::thread::sleep(Duration::from_secs(7));
        agent.client.prepare("new", &top, &[]).unwrap();
        scene.until(&agent, "it waits", || agent.log().contains("in use").then_some(()));
        assert_eq!(agent.attached().len(), 2);
        // The snapshot of the older volume stays as long as the node's claim.
        scene.daemon.service.reload(&scene.world.config);
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(scene.world.fake().stored_snapshots(), 2);
        let last_used = || scene.world.get::<ImageCache>(&scene.world.team, "web")?.status?.last_used;
        scene.until(&agent, "the status shows the last use", last_used);
        agent.client.remove("old").unwrap();
        scene.until(&agent, "only the newer volume is attached", || {
            let now = agent.attached();
            // At no time is there no volume.
            assert!(!now.is_empty());
            (now.len() == 1 && now != before).then_some(())
        });
        assert_eq!(agent.client.stat("new").unwrap().name, "new");
        scene.until(&agent, "one claim is left", || (scene.claims().len() == 1).then_some(()));
        let left = scene.claims().remove(0);
        assert_eq!(left.labels()["larder.dev/generation"], "2");
        scene.until(&agent, "one snapshot is left", || {
            scene.daemon.service.reload(&scene.world.config);
            (scene.world.fake().stored_snapshots() == 1).then_some(())
        });
        agent.client.view("view", &top).expect("the newer volume does not serve the layers");
        assert_eq!(scene.world.fake().unplugged_disks(), 0);
    });
}

#[case]
fn an_expired_cache_is_detached() {
    isolated(&[], || {
        let clock = std::sync::Arc::new(FakeClock::default());
        clock.set_forward((chrono::Utc::now() - clock.now()).to_std().unwrap());
        let given = clock.clone();
        let Some(scene) = Scene::with(World::faked(), move |world| world.clock = given) else { return };
        scene.cache("short", |object| object.spec.retention_days = 1);
        let agent = scene.agent("node-a", "");
        scene.pod(&scene.world.team, "app", "node-a", Some("short"), "larder:1");
        scene.attached(&agent, 1);
        clock.pass(Duration::from_secs(2 * 86_400));
        scene.daemon.service.reload(&scene.world.config);
        scene.nothing_left(&agent);
        let told = scene.told(&agent, &scene.world.team, "app", "ImageCacheRefused");
        assert!(told.contains(&Status::Unavailable.to_string()) || told.contains("there is no"), "{told}");
    });
}

/// Under Pod Security "restricted" a builder is not root, and owns the files itself.
#[case]
fn a_volume_that_belongs_to_the_builder_is_attached() {
    isolated(&[Need::Erofs], || {
        let erofs = |world: &mut World| world.config.build.layer_format = LayerFormat::Erofs;
        let Some(scene) = Scene::with(World::faked(), erofs) else { return };
        let object = scene.offered("web", 1);
        let handle = object.status.unwrap().content.unwrap().snapshot.unwrap().handle;
        let stored = scene.world.fake().stored(&handle).unwrap().path;
        crate::harness::succeed(std::process::Command::new("chown").args(["-R", "65532:65532"]).arg(stored));
        let agent = scene.agent("node-a", "");
        scene.pod(&scene.world.team, "app", "node-a", Some("web"), "larder:1");
        scene.told(&agent, &scene.world.team, "app", "ImageCacheAttached");
        assert!(scene.take(&agent).is_some(), "the layers are not attached");
    });
}

#[case]
fn a_namespace_does_not_take_all_places_of_a_node() {
    isolated(&[], || {
        let Some(scene) = Scene::new() else { return };
        let (team, other) = (scene.world.team.clone(), scene.world.other.clone());
        scene.cache("second", |_| {});
        scene.cache("third", |object| object.spec.share = vec![other.clone()]);
        scene.world.accept(&other, &team);
        let agent = scene.agent("node-a", "keep_minutes = 0\nmax_caches = 2");
        scene.pod(&team, "two", "node-a", Some("second"), "larder:1");
        scene.told(&agent, &team, "two", "ImageCacheAttached");
        let top = scene.take(&agent).unwrap();
        agent.client.prepare("container", &top, &[]).unwrap();
        // A namespace has priority over its pods.
        scene.annotate(&team, "web");
        scene.attached(&agent, 2);
        // A container uses the volume that loses its slot. The volume stays, and the node gets no third disk.
        scene.pod(&other, "late", "node-a", Some(&format!("{team}/third")), "larder:1");
        let told = scene.told(&agent, &team, "two", "ImageCacheRefused");
        assert!(told.contains("fairly"), "{told}");
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!((scene.claims().len(), agent.attached().len()), (2, 2));
        agent.client.remove("container").unwrap();
        scene.told(&agent, &other, "late", "ImageCacheAttached");
        scene.attached(&agent, 2);
        // The slot is free again when no other pod needs it.
        scene.remove_pod(&other, "late");
        scene.until(&agent, "the second volume is attached again", || {
            let claims = scene.claims();
            let has = |name: &str| {
                let cache = format!("{team}/{name}");
                claims.iter().any(|claim| claim.annotations()["larder.dev/image-cache"] == cache)
            };
            (agent.attached().len() == 2 && has("web") && has("second") && !has("third")).then_some(())
        });
        assert_eq!(scene.world.fake().unplugged_disks(), 0);
    });
}
