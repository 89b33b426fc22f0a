//! Holds back pods that require an image cache until a node has it. Runs in the leading daemon.
//!
//! ```text
//! pod, annotated ──► admission policy adds gate and label      config/kubernetes/node/required
//!                        │
//!   attached on a node that fits? ── yes ──► add node affinity for its label, remove gate ──► scheduler
//!                        │ no
//!   label larder.dev/attach-on: one node that fits ──► its agent attaches it and labels the node
//! ```
//!
//! The policy could add the affinity itself only if the pod named its image cache, and if a node attached it
//! without a pod that wants it there. Therefore every such pod gets a gate, and the same rule as on nodes
//! decides for all of them: [`desired::Choices`].
//!
//! If the scheduler cannot place a pod although a node has the image cache, the pod gets another node after
//! [`PLACE_TIMEOUT`], which doubles each time. A node that does not attach the image cache is replaced after
//! [`ATTACH_TIMEOUT`]. An event reports the reason of a wait after [`NOTIFY_AFTER`].
//!
//! Traffic: watches of unscheduled pods with the label, of nodes, of namespaces and of image caches, all on
//! the leading daemon only; two patches for each pod; one list at the start of each watch.

mod fits;
mod plan;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::reflector::Store;
use kube::runtime::watcher::{self, Config};
use kube::{Client, Resource as _, ResourceExt as _};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::caches::Caches;
use super::cluster_view::{self, NamespaceStore};
use super::desired;
use super::follow::follow;
use super::labels::REQUIRED;
use crate::caches::service::Service;
use crate::kubernetes::client::ApiServer;
use crate::kubernetes::events::{Report, Reporter};
use crate::kubernetes::fault::{Fault, request};
use larder_model::digest::Digest;
use plan::{Held, Next};

/// Minimum time between two passes: changes at the same time are handled together.
const MIN_PASS_INTERVAL: Duration = Duration::from_millis(50);
/// Maximum time between two passes.
const MAX_PASS_INTERVAL: Duration = Duration::from_secs(5);
/// Delay before a failed patch is retried.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Interval at which a daemon checks whether it leads.
const LEADER_POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Duration of a wait after which an event reports its reason.
const NOTIFY_AFTER: Duration = Duration::from_secs(30);
/// Time limit for a node to attach an image cache; the same as the default of `node.pending_timeout_minutes`.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(600);
/// Time limit for the scheduler to place a pod on a node that has the image cache.
const PLACE_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum number of concurrent patches.
const MAX_PATCHES: usize = 16;

/// Releases pods that are held back.
#[derive(Debug)]
pub(in crate::kubernetes) struct PodReleaser {
    client: ApiServer,
    service: Service,
    /// The namespace of volumes.
    volumes: String,
    reporter: Reporter,
}

impl PodReleaser {
    /// Creates a releaser for the daemon `identity`. `volumes` is the namespace of volumes.
    pub(in crate::kubernetes) fn new(
        client: Client,
        service: Service,
        volumes: &str,
        identity: &str,
    ) -> Self {
        let reporter = Reporter::new(client.clone(), "larder.dev/daemon", identity);
        PodReleaser { client: client.into(), service, volumes: volumes.to_owned(), reporter }
    }

    /// Runs until the future is dropped. It watches only while this daemon leads.
    pub(in crate::kubernetes) async fn run(&self) {
        loop {
            self.until_leading(true).await;
            let mut watched = Watched::new(&self.client, &self.volumes);
            tokio::select! {
                () = self.run_passes(&mut watched) => {}
                () = self.until_leading(false) => {}
            }
        }
    }

    async fn until_leading(&self, leads: bool) {
        while self.service.leads() != leads {
            tokio::time::sleep(LEADER_POLL_INTERVAL).await;
        }
    }

    async fn run_passes(&self, watched: &mut Watched) {
        watched.ready().await;
        let mut memory: HashMap<String, Memory> = HashMap::new();
        loop {
            let again = self.pass(watched, &mut memory).await;
            let wake = Arc::clone(&watched.wake);
            tokio::time::sleep(MIN_PASS_INTERVAL).await;
            let _ = tokio::time::timeout(again, wake.notified()).await;
        }
    }

    /// Takes the next step for each pod. Returns the maximum time until the next pass.
    async fn pass(&self, watched: &mut Watched, memory: &mut HashMap<String, Memory>) -> Duration {
        let pods = watched.pods.state();
        memory.retain(|uid, _| pods.iter().any(|pod| pod.uid().as_ref() == Some(uid)));
        if pods.is_empty() {
            return MAX_PASS_INTERVAL;
        }
        let (caches, namespaces) = (watched.caches.all(), cluster_view::annotations_of(&watched.namespaces));
        let nodes = watched.nodes.state();
        let nodes: Vec<&Node> =
            nodes.iter().map(AsRef::as_ref).filter(|node| plan::has_agent(node)).collect();
        // Pods with the same constraints can use the same nodes.
        let mut choices = desired::Choices::new(&namespaces, &caches);
        let mut usable: HashMap<String, Vec<&Node>> = HashMap::new();
        let mut patches: Vec<(Arc<Pod>, Value)> = Vec::new();
        for pod in &pods {
            if pod.metadata.deletion_timestamp.is_some() {
                continue;
            }
            let now = Instant::now();
            let memory = memory.entry(pod.uid().unwrap_or_default()).or_insert_with(|| Memory::new(now));
            // The watch has not delivered the result of the last patch yet.
            if memory.patched.is_some() && memory.patched == pod.resource_version() {
                continue;
            }
            let desired = choices.of(pod);
            let fitting = || nodes.iter().copied().filter(|node| fits::fits(pod, node)).collect();
            let fitting = usable.entry(constraints(pod)).or_insert_with(fitting);
            let overdue = memory.is_overdue(pod, now);
            let held = Held { pod: pod.as_ref(), desired: desired.clone(), nodes: fitting, overdue };
            let next = held.next();
            if !matches!(next, Next::Wait(_)) {
                memory.patched = pod.resource_version();
            }
            match (next, desired) {
                (Next::Release, Ok(desired)) => patches.push((Arc::clone(pod), plan::release(pod, &desired))),
                (Next::Attach(node), _) => patches.push((Arc::clone(pod), plan::attach_on(pod, &node))),
                (Next::Wait(why), _) => self.notify(pod, &why, memory, now),
                (Next::Release, Err(_)) => {}
            }
        }
        if release((*self.client).clone(), patches).await {
            return MAX_PASS_INTERVAL;
        }
        memory.values_mut().for_each(|memory| memory.patched = None);
        RETRY_INTERVAL
    }

    /// Creates an event with the reason of a wait, if the pod has waited long enough.
    fn notify(&self, pod: &Pod, why: &str, memory: &mut Memory, now: Instant) {
        if !memory.is_news(why, now) {
            return;
        }
        // A later leader gives the same event the same name.
        let name = Digest::sha256(format!("{} {why}", pod.uid().unwrap_or_default()).as_bytes());
        let report = Report {
            suffix: Some(name.hex()[..16].to_owned()),
            warning: true,
            action: "Hold",
            reason: "ImageCacheWaiting".to_owned(),
            note: format!("the pod requires an image cache and waits: {why}"),
        };
        self.reporter.report(&pod.object_ref(&()), report);
    }
}

/// Sends the patches, with limited concurrency. Returns whether all succeeded.
async fn release(client: Client, patches: Vec<(Arc<Pod>, Value)>) -> bool {
    let mut patches = patches.into_iter();
    let mut running: JoinSet<bool> = JoinSet::new();
    let mut is_done = true;
    loop {
        while running.len() < MAX_PATCHES
            && let Some((pod, patch)) = patches.next()
        {
            running.spawn(patch_pod(client.clone(), pod, patch));
        }
        match running.join_next().await {
            Some(done) => is_done &= done.unwrap_or(false),
            None => return is_done,
        }
    }
}

/// Patches a pod. Returns whether it succeeded. A pod that has changed counts as success, because the watch
/// delivers it again.
async fn patch_pod(client: Client, pod: Arc<Pod>, patch: Value) -> bool {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let api: Api<Pod> = Api::namespaced(client, &namespace);
    let doing = format!("releasing the pod {namespace}/{name}");
    match request!(&doing, api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch))) {
        Ok(_) => true,
        Err(fault) if fault.is_conflict() || fault.is_not_found() => true,
        Err(fault) => {
            let fault: Fault = fault;
            tracing::warn!("{fault}");
            false
        }
    }
}

/// Returns the fields of a pod that decide which nodes it can use.
fn constraints(pod: &Pod) -> String {
    let Some(spec) = &pod.spec else { return String::new() };
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    json!([spec.node_selector, affinity, spec.tolerations]).to_string()
}

/// State that is kept for a pod between passes. It may be lost at any time.
#[derive(Debug)]
struct Memory {
    /// Reason of the wait, its start, and whether an event was created.
    waits: Option<(String, Instant, bool)>,
    /// The chosen node, whether the pod was gated then, and the time of the choice.
    chosen: (Option<String>, bool, Instant),
    /// Number of nodes that were chosen after the pod was released.
    tries: u32,
    /// Version of the pod before the last patch.
    patched: Option<String>,
}

impl Memory {
    fn new(now: Instant) -> Self {
        Memory { waits: None, chosen: (None, true, now), tries: 0, patched: None }
    }

    /// Reports whether a pod has waited for this reason for [`NOTIFY_AFTER`] and no event was created. The
    /// scheduler needs a moment after each release, which is not reported.
    fn is_news(&mut self, why: &str, now: Instant) -> bool {
        match &mut self.waits {
            Some((reason, since, reported)) if reason == why => {
                let is_news = !*reported && now - *since >= NOTIFY_AFTER;
                *reported |= is_news;
                is_news
            }
            waits => {
                *waits = Some((why.to_owned(), now, false));
                false
            }
        }
    }

    /// Reports whether the time limit of the chosen node or of the scheduler has passed.
    fn is_overdue(&mut self, pod: &Pod, now: Instant) -> bool {
        let (node, gated) = (plan::chosen(pod), plan::is_gated(pod));
        if self.chosen.0.as_deref() != node || self.chosen.1 != gated {
            self.tries += u32::from(!gated);
            self.chosen = (node.map(str::to_owned), gated, now);
        }
        // The limit doubles, so that a pod that fits nowhere does not bring a disk to every node of the
        // cluster.
        let timeout = if gated { ATTACH_TIMEOUT } else { PLACE_TIMEOUT * 2_u32.pow(self.tries.min(8)) / 2 };
        now - self.chosen.2 >= timeout
    }
}

/// The watches of the leading daemon.
struct Watched {
    pods: Store<Pod>,
    nodes: Store<Node>,
    namespaces: NamespaceStore,
    caches: Caches,
    wake: Arc<Notify>,
    _watches: JoinSet<()>,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").finish_non_exhaustive()
    }
}

impl Watched {
    fn new(client: &Client, volumes: &str) -> Self {
        let (mut watches, wake) = (JoinSet::new(), Arc::new(Notify::new()));
        // A pod leaves the watch when it is scheduled.
        let held = Config::default().labels(&format!("{REQUIRED}=true")).fields("spec.nodeName=");
        let pods = watcher::watcher(Api::<Pod>::all(client.clone()), held);
        let pods = pods.modify(|pod| pod.metadata.managed_fields = None);
        let pods = follow(&mut watches, &wake, pods);
        let nodes = watcher::watcher(Api::<Node>::all(client.clone()), Config::default());
        let nodes = nodes.modify(|node| {
            node.metadata.managed_fields = None;
            node.metadata.annotations = None;
            if let Some(status) = &mut node.status {
                (status.images, status.volumes_attached, status.volumes_in_use) = (None, None, None);
            }
        });
        let nodes = follow(&mut watches, &wake, nodes);
        let namespaces = cluster_view::namespaces(client, &mut watches, &wake);
        let caches = Caches::new(client, volumes, &wake);
        Watched { pods, nodes, namespaces, caches, wake, _watches: watches }
    }

    /// Waits until the first list of every watch is complete.
    async fn ready(&mut self) {
        // The writers live as long as the watches.
        let _ = tokio::join!(
            self.pods.wait_until_ready(),
            self.nodes.wait_until_ready(),
            self.namespaces.wait_until_ready(),
            self.caches.watch_all(),
        );
    }
}

#[cfg(test)]
mod tests;
