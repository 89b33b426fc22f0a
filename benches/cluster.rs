//! A large cluster: the requests to its API server and the memory of the controller and the node agents.
//!
//! `cargo bench --features testing --bench cluster [CACHES [NODES]]`. The default is 5000 image caches of 100
//! tenants, and 1000 nodes.
//!
//! Set `LARDER` to measure another program, for a comparison.
//!
//! The API server is the one of `larder_fake_kubernetes`, without controllers, kubelets and storage. It
//! serves and counts requests; its speed is not that of a real server. The controller is the real
//! `larder serve`, and one agent is the real `larder node`. The other agents run the same code in this
//! process. The objects are those after a build of three images with 15 layers each.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measurement stops at the first error and prints its results"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use larder::config::node::Node as NodeConfig;
use larder::kubernetes::node::{Agent, AttachFault, Attacher, Settings};
use larder::telemetry::metrics::Metrics;
use larder_fake_kubernetes::{Cluster, Seen, Timing};
use larder_model::digest::Digest;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

const TENANTS: usize = 100;
const LARDER: &str = "system:serviceaccount:larder:larder";
const AGENT: &str = "system:serviceaccount:larder-nodes:larder-node";
const SNAPSHOTS: &str = "snapshot.storage.k8s.io";
const TIME: &str = "2026-01-01T00:00:00Z";
/// Duration of the steady-state measurement.
const STEADY_DURATION: Duration = Duration::from_secs(60);
/// Time after which a step of the measurement fails.
const STEP_TIMEOUT: Duration = Duration::from_secs(600);

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|argument| argument.parse().ok());
    let caches = numbers.next().unwrap_or(5000);
    let nodes = numbers.next().unwrap_or(1000);
    let runtime = Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let cluster = {
        let _in = runtime.enter();
        let bookmark = Duration::from_secs(60);
        Cluster::without_components(Timing { bookmark, ..Timing::default() })
    };
    let bytes = create_objects(&cluster, caches, nodes);
    println!("{caches} image caches of {TENANTS} tenants, {} KiB each as JSON; {nodes} nodes", bytes / 1024);

    let start = Instant::now();
    let mut controller = controller(&cluster, dir.path());
    controller.until_led(&cluster);
    println!("controller leads after {:.1} s", start.elapsed().as_secs_f64());
    report("controller, start", &cluster, LARDER, 0, None);
    steady("controller", &cluster, LARDER, &controller);

    let seen = cluster.seen().len();
    let agent = agent_process(&cluster, dir.path());
    std::thread::sleep(Duration::from_secs(5));
    report("one agent, start", &cluster, AGENT, seen, None);
    println!("one agent: {} MiB", agent.resident_mib());
    steady("one agent", &cluster, AGENT, &agent);
    drop(agent);

    let seen = cluster.seen().len();
    let before = resident_mib(std::process::id());
    let start = Instant::now();
    let stop = CancellationToken::new();
    let ready = runtime.block_on(agents(&cluster, nodes, &stop));
    wait("every agent is ready", || {
        ready.iter().all(|ready| ready.load(std::sync::atomic::Ordering::Acquire))
    });
    wait("every node has a claim", || claims(&cluster, 1) == nodes);
    println!("{nodes} agents have claims after {:.1} s", start.elapsed().as_secs_f64());
    report(&format!("{nodes} agents, start"), &cluster, AGENT, seen, None);
    println!("{nodes} agents in one process: {} MiB", resident_mib(std::process::id()) - before);
    let seen = cluster.seen().len();
    std::thread::sleep(STEADY_DURATION);
    report(&format!("{nodes} agents, steady"), &cluster, AGENT, seen, Some(STEADY_DURATION));
    println!("controller, with all agents: {} MiB", controller.resident_mib());

    // Refreshes one image cache of each tenant: each node needs the new volume of one of them.
    let seen = cluster.seen().len();
    let start = Instant::now();
    for tenant in 0..TENANTS {
        refresh(&cluster, tenant);
    }
    wait("every node has a claim for the new volume", || claims(&cluster, 2) == nodes);
    println!(
        "{TENANTS} refreshed image caches are claimed on {nodes} nodes after {:.1} s",
        start.elapsed().as_secs_f64()
    );
    report("agents, refresh", &cluster, AGENT, seen, None);
    report("controller, refresh", &cluster, LARDER, seen, None);
    stop.cancel();
}

/// Creates all objects. Returns the size of an ImageCache as JSON, in bytes.
fn create_objects(cluster: &Cluster, caches: usize, nodes: usize) -> usize {
    cluster.install(&serde_json::to_value(larder::kubernetes::crd::definition()).unwrap());
    cluster.install_storage("Delete");
    let namespaces = ["larder", "larder-nodes", "larder-volumes"].map(str::to_owned);
    for name in namespaces.into_iter().chain((0..TENANTS).map(tenant)) {
        cluster.install(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    }
    for file in ["rbac.yaml", "node/rbac.yaml"] {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("config/kubernetes").join(file);
        for document in fs::read_to_string(path).unwrap().split("\n---\n") {
            cluster.install(&serde_saphyr::from_str(document).unwrap());
        }
    }
    let mut bytes = 0;
    for at in 0..caches {
        let cache = image_cache(at, 1);
        bytes = cache.to_string().len();
        cluster.restore("larder.dev", "imagecaches", cache);
        offer(cluster, at, 1);
    }
    for at in 0..nodes {
        let (name, of) = (node(at), at % TENANTS);
        cluster.install(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}));
        for pod in 0..20 {
            // One of twenty pods requests an image cache.
            let annotations =
                if pod == 0 { json!({"larder.dev/image-cache": format!("cache-{of}")}) } else { json!({}) };
            cluster.install(&json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": format!("pod-{at}-{pod}"), "namespace": tenant(of), "annotations": annotations},
                "spec": {"nodeName": name, "containers": [{"name": "app", "image": image(of, 0)}]},
            }));
        }
    }
    bytes
}

fn tenant(at: usize) -> String {
    format!("team-{:03}", at % TENANTS)
}

fn node(at: usize) -> String {
    format!("node-{at:04}")
}

fn image(cache: usize, at: usize) -> String {
    format!("registry.example.com/team/app-{cache}-{at}:1")
}

fn uid(at: usize) -> String {
    format!("00000000-0000-4000-8000-{at:012x}")
}

fn snapshot_name(at: usize, generation: usize) -> String {
    if generation == 1 { format!("ic-{}", uid(at)) } else { format!("ic-{}-{generation}", uid(at)) }
}

fn image_cache(at: usize, generation: usize) -> Value {
    let digest = |what: &str| Digest::sha256(format!("{at} {generation} {what}").as_bytes()).to_string();
    let images: Vec<Value> = (0..3)
        .map(|one| json!({"reference": image(at, one), "manifest": digest(&format!("m{one}"))}))
        .collect();
    let layers: Vec<Value> = (0..45)
        .map(|one| {
            json!({
                "blob": digest(&format!("l{one}")), "images": [one % 3], "compressedSize": 30_000_000,
                "size": 90_000_000, "elapsedMs": 1000, "origin": "fetched",
            })
        })
        .collect();
    let events: Vec<Value> = (1..=4)
        .map(|sequence| json!({"sequence": sequence, "time": TIME, "status": "Creating", "message": "attempt 1 began"}))
        .collect();
    let copies: Vec<Value> = ["larder-volumes".to_owned(), tenant(at)]
        .iter()
        .map(|namespace| json!({"namespace": namespace, "ready": true}))
        .collect();
    json!({
        "apiVersion": "larder.dev/v1", "kind": "ImageCache",
        "metadata": {
            "name": format!("cache-{at}"), "namespace": tenant(at), "uid": uid(at), "generation": 1,
            "creationTimestamp": TIME, "finalizers": ["larder.dev/content"],
        },
        "spec": {
            "images": (0..3).map(|one| image(at, one)).collect::<Vec<_>>(), "imageCacheSize": 20, "retentionDays": 0,
            "cluster": "", "imagePullSecrets": [], "share": [],
        },
        "status": {
            "phase": "Available", "since": TIME, "createdAt": TIME, "orderedBy": "cluster", "observedGeneration": 1,
            "generation": generation, "sequence": 4, "events": events, "copies": copies,
            "content": {
                "generation": generation, "sealedAt": TIME, "digest": digest("cache.json"), "images": images,
                "layers": layers,
                "totals": {"layers": 45, "compressedSize": 1_350_000_000_u64, "size": 4_050_000_000_u64, "entries": 90_000},
                "snapshot": {
                    "namespace": "larder", "name": snapshot_name(at, generation), "handle": format!("h-{at}"), "driver": "d",
                    "restoreSize": 21_474_836_480_u64,
                },
            },
        },
    })
}

/// Creates the snapshot of a volume and its two copies, all ready.
fn offer(cluster: &Cluster, at: usize, generation: usize) {
    let name = snapshot_name(at, generation);
    let labels = json!({
        "app.kubernetes.io/name": "larder-builder", "app.kubernetes.io/managed-by": "larder",
        "larder.dev/installation": "larder", "larder.dev/id": uid(at), "larder.dev/generation": generation.to_string(),
        "larder.dev/tenant": tenant(at),
    });
    let meta = |name: &str, namespace: &str, salt: usize| {
        json!({
            "name": name, "namespace": namespace, "labels": labels, "creationTimestamp": TIME,
            "uid": format!("00000000-0000-4000-9{generation:01}{salt:02}-{at:012x}"),
        })
    };
    let status = json!({"readyToUse": true, "restoreSize": "20Gi"});
    let own = json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": meta(&name, "larder", 0),
        "spec": {"source": {"persistentVolumeClaimName": name}}, "status": status,
    });
    cluster.restore(SNAPSHOTS, "volumesnapshots", own);
    for (salt, namespace) in [(1, "larder-volumes".to_owned()), (2, tenant(at))] {
        let content = format!("{name}.{generation}.{namespace}");
        let mut of = meta(&content, "", salt + 10);
        of.as_object_mut().unwrap().remove("namespace");
        cluster.restore(
            SNAPSHOTS,
            "volumesnapshotcontents",
            json!({
                "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent", "metadata": of,
                "spec": {
                    "deletionPolicy": "Retain", "driver": "d", "source": {"snapshotHandle": format!("h-{at}")},
                    "volumeSnapshotRef": {"name": name, "namespace": namespace},
                },
                "status": {"readyToUse": true, "snapshotHandle": format!("h-{at}")},
            }),
        );
        cluster.restore(
            SNAPSHOTS,
            "volumesnapshots",
            json!({
                "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
                "metadata": meta(&name, &namespace, salt), "spec": {"source": {"volumeSnapshotContentName": content}},
                "status": status,
            }),
        );
    }
}

/// Simulates the end of a refresh: the next volume is offered and served.
fn refresh(cluster: &Cluster, at: usize) {
    offer(cluster, at, 2);
    cluster.restore("larder.dev", "imagecaches", image_cache(at, 2));
}

/// A process under measurement and its log. Dropping it kills the process.
struct Process(Child, PathBuf);

impl Process {
    fn start(program: &mut Command, log: &Path) -> Self {
        let file = fs::File::create(log).unwrap();
        program.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        Process(program.spawn().unwrap(), log.to_owned())
    }

    fn resident_mib(&self) -> u64 {
        resident_mib(self.0.id())
    }

    fn until_led(&mut self, cluster: &Cluster) {
        wait("a daemon leads and has swept", || {
            let ended = self.0.try_wait().unwrap();
            assert!(ended.is_none(), "larder serve has ended:\n{}", fs::read_to_string(&self.1).unwrap());
            cluster.peek("coordination.k8s.io", "leases", "larder", "larder").is_some()
                && cluster.peek("", "configmaps", "larder", "larder-clock").is_some()
        });
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn resident_mib(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

fn larder() -> Command {
    Command::new(std::env::var_os("LARDER").unwrap_or_else(|| env!("CARGO_BIN_EXE_larder").into()))
}

fn kubeconfig(cluster: &Cluster, dir: &Path, user: &str, name: &str) -> PathBuf {
    let (token, path) = (dir.join(format!("{name}.token")), dir.join(format!("{name}.kubeconfig")));
    fs::write(&token, cluster.token(user)).unwrap();
    fs::write(&path, cluster.kubeconfig(&token, "default")).unwrap();
    path
}

fn controller(cluster: &Cluster, dir: &Path) -> Process {
    let kubeconfig = kubeconfig(cluster, dir, LARDER, "larder");
    let config = dir.join("larder.toml");
    fs::write(
        &config,
        format!(
            "state.dir = '{}'\napi.socket = '{}'\n[[cluster]]\nuid = 'here'\nrunner = 'kubernetes'\n\
             kubeconfig = '{}'\nbuilder_image = 'larder:1'\nstorage_class = 'csi'\nsnapshot_class = 'csi'\nnode_namespace = 'larder-volumes'\n",
            dir.join("state").display(),
            dir.join("api.sock").display(),
            kubeconfig.display(),
        ),
    )
    .unwrap();
    Process::start(larder().arg("serve").arg("--config").arg(config), &dir.join("controller.log"))
}

fn settings(at: usize, dir: Option<&Path>) -> NodeConfig {
    let mut config = NodeConfig {
        name: node(at),
        image: "larder:1".into(),
        storage_class: "csi".into(),
        ..NodeConfig::default()
    };
    if let Some(dir) = dir {
        config.mounts = dir.join("icv");
        config.kubelet = dir.join("kubelet");
    }
    config
}

fn agent_process(cluster: &Cluster, dir: &Path) -> Process {
    let path = kubeconfig(cluster, dir, AGENT, "agent");
    let NodeConfig { name, mounts, kubelet, .. } = settings(0, Some(dir));
    fs::create_dir_all(kubelet.join("pods")).unwrap();
    let config = dir.join("node.toml");
    fs::write(
        &config,
        format!(
            "state.dir = '{}'\n[node]\nname = '{name}'\nkubeconfig = '{}'\nimage = 'larder:1'\nstorage_class = 'csi'\n\
             mounts = '{}'\nkubelet = '{}'\n",
            dir.join("node-state").display(),
            path.display(),
            mounts.display(),
            kubelet.display(),
        ),
    )
    .unwrap();
    let socket = dir.join("socket");
    let mut command = larder();
    command.arg("node").arg("--config").arg(config).arg("--socket").arg(socket);
    Process::start(&mut command, &dir.join("agent.log"))
}

/// An attacher that does nothing, because no kubelet mounts anything here.
#[derive(Debug)]
struct NoopAttacher;

impl Attacher for NoopAttacher {
    fn attach(&self, _: &Path, _: &str, _: &Digest) -> Result<(), AttachFault> {
        Ok(())
    }

    fn detach(&self, _: &str) -> Result<(), AttachFault> {
        Ok(())
    }

    fn attached(&self) -> Result<Vec<String>, AttachFault> {
        Ok(Vec::new())
    }
}

async fn agents(
    cluster: &Cluster,
    nodes: usize,
    stop: &CancellationToken,
) -> Vec<Arc<std::sync::atomic::AtomicBool>> {
    let token = cluster.token(AGENT);
    let mut ready = Vec::new();
    for at in 0..nodes {
        let client = Client::try_from(cluster.config(Some(&token))).unwrap();
        let settings = Settings { config: settings(at, None), node: node(at) };
        let mut agent = Agent::new(client, settings, Arc::new(NoopAttacher), Metrics::new());
        ready.push(agent.readiness());
        let stop = stop.clone();
        tokio::spawn(async move { agent.run(&stop).await });
    }
    ready
}

/// Returns the number of claims for volumes of this generation.
fn claims(cluster: &Cluster, generation: usize) -> usize {
    let all = cluster.peek_all("", "persistentvolumeclaims", "larder-volumes");
    let wanted = generation.to_string();
    let of = |claim: &&Value| claim["metadata"]["labels"]["larder.dev/generation"].as_str() == Some(&wanted);
    all.iter().filter(of).count()
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < STEP_TIMEOUT, "{what}: not within {STEP_TIMEOUT:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn steady(who: &str, cluster: &Cluster, user: &str, process: &Process) {
    let seen = cluster.seen().len();
    std::thread::sleep(STEADY_DURATION);
    report(&format!("{who}, steady"), cluster, user, seen, Some(STEADY_DURATION));
    println!("{who}: {} MiB of memory", process.resident_mib());
}

/// Prints the requests of a user after the first `since` requests.
fn report(what: &str, cluster: &Cluster, user: &str, since: usize, during: Option<Duration>) {
    let mut counts: BTreeMap<(String, &str), usize> = BTreeMap::new();
    let seen: Vec<Seen> = cluster.seen().split_off(since);
    for request in seen.into_iter().filter(|request| request.user == user) {
        *counts.entry((request.resource, request.verb)).or_default() += 1;
    }
    let total: usize = counts.values().sum();
    let rate =
        during.map(|during| format!(", {:.2}/s", total as f64 / during.as_secs_f64())).unwrap_or_default();
    let parts: Vec<String> =
        counts.iter().map(|((resource, verb), count)| format!("{verb} {resource} {count}")).collect();
    println!("{what}: {total} requests{rate} ({})", parts.join(", "));
}
