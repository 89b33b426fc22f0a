//! Pods that require an image cache, held back until a node has it. A part of the daemon that leads.
//!
//! ```text
//! pod, annotated ──► admission policy: gate and label      config/kubernetes/node/required
//!                        │
//!   the image cache is attached on a node that fits? ── yes ──► node affinity for its label, no gate ──► scheduler
//!                        │ no
//!   label larder.dev/attach-on: one node that fits ──► its agent attaches the image cache, and labels the node
//! ```
//!
//! The policy could add the affinity itself only if the pod named its image cache, and if some node attached it without a pod that wants
//! it there. So every such pod gets a gate, and one rule decides for all of them: [`wish::Choices`], as on nodes.
//!
//! A pod that the scheduler cannot place although the image cache is attached somewhere gets another node after
//! [`PLACE_PATIENCE`], which doubles each time, and a node that does not attach the image cache is given up after [`ATTACH_PATIENCE`]. What a pod waits for is
//! an event after [`TELL_AFTER`].
//!
//! Traffic: a watch of pods on no node with the label, one of nodes, of namespaces and of image caches, all on the leading daemon only;
//! two patches for each pod; no list but the first of each watch.

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

use super::known::{self, Caches, NamespaceStore};
use super::objects::REQUIRED;
use super::wish;
use crate::caches::service::Service;
use crate::kubernetes::client::ApiServer;
use crate::kubernetes::events::{Report, Reporter};
use crate::kubernetes::fault::{Fault, ask};
use larder_model::digest::Digest;
use plan::{Held, Next};

/// Shortest time between two passes: changes that come together are handled together.
const SETTLE: Duration = Duration::from_millis(50);
/// Longest time between two passes.
const AGAIN: Duration = Duration::from_secs(5);
/// Time until a patch that failed is tried again.
const SOON: Duration = Duration::from_secs(1);
/// How often a daemon looks whether it leads.
const LOOK: Duration = Duration::from_millis(500);
/// Time after which an event reports what a pod waits for.
const TELL_AFTER: Duration = Duration::from_secs(30);
/// Time that a node gets to attach an image cache. As `node.pending_timeout_minutes` by default.
const ATTACH_PATIENCE: Duration = Duration::from_secs(600);
/// Time that the scheduler gets to place a pod on a node that has the image cache.
const PLACE_PATIENCE: Duration = Duration::from_secs(30);
/// Maximum number of patches at once.
const PATCHES: usize = 16;

/// Releases pods that are held back.
#[derive(Debug)]
pub(in crate::kubernetes) struct Keeper {
    client: ApiServer,
    service: Service,
    /// Namespace of volumes.
    volumes: String,
    reporter: Reporter,
}

impl Keeper {
    /// A keeper for the daemon `identity`. `volumes` is the namespace of volumes.
    pub(in crate::kubernetes) fn new(
        client: Client,
        service: Service,
        volumes: &str,
        identity: &str,
    ) -> Self {
        let reporter = Reporter::new(client.clone(), "larder.dev/daemon", identity);
        Keeper { client: client.into(), service, volumes: volumes.to_owned(), reporter }
    }

    /// Runs until it is dropped. It watches only while this daemon leads.
    pub(in crate::kubernetes) async fn run(&self) {
        loop {
            self.until_leading(true).await;
            let mut seen = Seen::new(&self.client, &self.volumes);
            tokio::select! {
                () = self.keep(&mut seen) => {}
                () = self.until_leading(false) => {}
            }
        }
    }

    async fn until_leading(&self, leads: bool) {
        while self.service.leads() != leads {
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn keep(&self, seen: &mut Seen) {
        seen.ready().await;
        let mut memory: HashMap<String, Memory> = HashMap::new();
        loop {
            let again = self.pass(seen, &mut memory).await;
            let wake = Arc::clone(&seen.wake);
            tokio::time::sleep(SETTLE).await;
            let _ = tokio::time::timeout(again, wake.notified()).await;
        }
    }

    /// Takes the next step for each pod. Returns when to look again at the latest.
    async fn pass(&self, seen: &mut Seen, memory: &mut HashMap<String, Memory>) -> Duration {
        let pods = seen.pods.state();
        memory.retain(|uid, _| pods.iter().any(|pod| pod.uid().as_ref() == Some(uid)));
        if pods.is_empty() {
            return AGAIN;
        }
        let (caches, namespaces) = (seen.caches.all(), known::said(&seen.namespaces));
        let nodes = seen.nodes.state();
        let nodes: Vec<&Node> =
            nodes.iter().map(AsRef::as_ref).filter(|node| plan::has_agent(node)).collect();
        // Pods of one kind can use the same nodes.
        let mut choices = wish::Choices::new(&namespaces, &caches);
        let mut usable: HashMap<String, Vec<&Node>> = HashMap::new();
        let mut patches: Vec<(Arc<Pod>, Value)> = Vec::new();
        for pod in &pods {
            if pod.metadata.deletion_timestamp.is_some() {
                continue;
            }
            let now = Instant::now();
            let memory = memory.entry(pod.uid().unwrap_or_default()).or_insert_with(|| Memory::new(now));
            // The watch has not seen the answer to the patch of this version yet.
            if memory.patched.is_some() && memory.patched == pod.resource_version() {
                continue;
            }
            let wish = choices.of(pod);
            let fitting = || nodes.iter().copied().filter(|node| fits::fits(pod, node)).collect();
            let fitting = usable.entry(constraints(pod)).or_insert_with(fitting);
            let overdue = memory.is_overdue(pod, now);
            let held = Held { pod: pod.as_ref(), wish: wish.clone(), nodes: fitting, overdue };
            let next = held.next();
            if !matches!(next, Next::Wait(_)) {
                memory.patched = pod.resource_version();
            }
            match (next, wish) {
                (Next::Release, Ok(wish)) => patches.push((Arc::clone(pod), plan::release(pod, &wish))),
                (Next::Attach(node), _) => patches.push((Arc::clone(pod), plan::attach_on(pod, &node))),
                (Next::Wait(why), _) => self.tell(pod, &why, memory, now),
                (Next::Release, Err(_)) => {}
            }
        }
        if release((*self.client).clone(), patches).await {
            return AGAIN;
        }
        memory.values_mut().for_each(|memory| memory.patched = None);
        SOON
    }

    /// Creates an event about what a pod waits for, if it has waited for that long enough.
    fn tell(&self, pod: &Pod, why: &str, memory: &mut Memory, now: Instant) {
        if !memory.is_news(why, now) {
            return;
        }
        // A daemon that leads after this one gives the same event the same name.
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

/// Patches pods, some at once. Returns whether all is done.
async fn release(client: Client, patches: Vec<(Arc<Pod>, Value)>) -> bool {
    let mut patches = patches.into_iter();
    let mut running: JoinSet<bool> = JoinSet::new();
    let mut is_done = true;
    loop {
        while running.len() < PATCHES
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

/// Patches a pod. Returns whether it is done; a pod that has changed is seen again.
async fn patch_pod(client: Client, pod: Arc<Pod>, patch: Value) -> bool {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let api: Api<Pod> = Api::namespaced(client, &namespace);
    let doing = format!("releasing the pod {namespace}/{name}");
    match ask!(&doing, api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch))) {
        Ok(_) => true,
        Err(fault) if fault.is_conflict() || fault.is_not_found() => true,
        Err(fault) => {
            let fault: Fault = fault;
            tracing::warn!("{fault}");
            false
        }
    }
}

/// What decides which nodes a pod can use.
fn constraints(pod: &Pod) -> String {
    let Some(spec) = &pod.spec else { return String::new() };
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    json!([spec.node_selector, affinity, spec.tolerations]).to_string()
}

/// What is remembered of a pod. Nothing of it must survive a restart.
#[derive(Debug)]
struct Memory {
    /// What the pod waits for, since when, and whether an event was created.
    waits: Option<(String, Instant, bool)>,
    /// The node that was chosen, whether the pod was gated then, and since when.
    chosen: (Option<String>, bool, Instant),
    /// How many nodes were chosen after the pod was released.
    tries: u32,
    /// The version of the pod that was patched last.
    patched: Option<String>,
}

impl Memory {
    fn new(now: Instant) -> Self {
        Memory { waits: None, chosen: (None, true, now), tries: 0, patched: None }
    }

    /// Whether a pod has waited for this for [`TELL_AFTER`], and no event was created. The scheduler needs a moment after each release,
    /// which is no news.
    fn is_news(&mut self, why: &str, now: Instant) -> bool {
        match &mut self.waits {
            Some((known, since, told)) if known == why => {
                let is_news = !*told && now - *since >= TELL_AFTER;
                *told |= is_news;
                is_news
            }
            waits => {
                *waits = Some((why.to_owned(), now, false));
                false
            }
        }
    }

    /// Whether the node that was chosen, or the scheduler, had enough time.
    fn is_overdue(&mut self, pod: &Pod, now: Instant) -> bool {
        let (node, gated) = (plan::chosen(pod), plan::is_gated(pod));
        if self.chosen.0.as_deref() != node || self.chosen.1 != gated {
            self.tries += u32::from(!gated);
            self.chosen = (node.map(str::to_owned), gated, now);
        }
        // A pod that fits nowhere must not bring a disk to each node of the cluster.
        let patience =
            if gated { ATTACH_PATIENCE } else { PLACE_PATIENCE * 2_u32.pow(self.tries.min(8)) / 2 };
        now - self.chosen.2 >= patience
    }
}

/// What the leading daemon watches.
struct Seen {
    pods: Store<Pod>,
    nodes: Store<Node>,
    namespaces: NamespaceStore,
    caches: Caches,
    wake: Arc<Notify>,
    _watches: JoinSet<()>,
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seen").finish_non_exhaustive()
    }
}

impl Seen {
    fn new(client: &Client, volumes: &str) -> Self {
        let (mut watches, wake) = (JoinSet::new(), Arc::new(Notify::new()));
        // A pod leaves the watch when it gets a node.
        let held = Config::default().labels(&format!("{REQUIRED}=true")).fields("spec.nodeName=");
        let pods = watcher::watcher(Api::<Pod>::all(client.clone()), held);
        let pods = pods.modify(|pod| pod.metadata.managed_fields = None);
        let pods = known::follow(&mut watches, &wake, pods);
        let nodes = watcher::watcher(Api::<Node>::all(client.clone()), Config::default());
        let nodes = nodes.modify(|node| {
            node.metadata.managed_fields = None;
            node.metadata.annotations = None;
            if let Some(status) = &mut node.status {
                (status.images, status.volumes_attached, status.volumes_in_use) = (None, None, None);
            }
        });
        let nodes = known::follow(&mut watches, &wake, nodes);
        let namespaces = known::namespaces(client, &mut watches, &wake);
        let caches = Caches::new(client, volumes, &mut watches, &wake);
        Seen { pods, nodes, namespaces, caches, wake, _watches: watches }
    }

    /// Waits until all has been read once.
    async fn ready(&self) {
        // The writers live as long as the watches.
        let _ = tokio::join!(
            self.pods.wait_until_ready(),
            self.nodes.wait_until_ready(),
            self.namespaces.wait_until_ready(),
            self.caches.ready(),
        );
    }
}

#[cfg(test)]
mod tests;
