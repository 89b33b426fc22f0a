//! The images that pods need, in namespaces with the annotation `larder.dev/create-on-miss: "true"`. Pods of
//! other namespaces are not read.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Client, ResourceExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::miss::Need;

/// Annotation of a namespace: `"true"` if image caches can be created for images that its pods miss.
const CREATE_ON_MISS: &str = "larder.dev/create-on-miss";
/// Maximum number of namespaces with the annotation that are watched.
const MAX_NAMESPACES: usize = 200;
/// Capacity of the queue of needs.
const QUEUE_CAPACITY: usize = 256;

type Namespaces = BoxStream<'static, watcher::Result<Event<PartialObjectMeta<Namespace>>>>;

/// Watches the namespaces with the annotation, and their pods.
pub(super) struct Pods {
    client: Client,
    namespaces: Namespaces,
    /// Namespaces of the list that is being read.
    reading: BTreeSet<String>,
    watches: HashMap<String, Watch>,
    sender: mpsc::Sender<Need>,
    needs: mpsc::Receiver<Need>,
}

/// The watch of one namespace. It ends when it is dropped.
struct Watch(JoinHandle<()>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A change in the cluster.
pub(super) enum Change {
    /// A pod needs images.
    Need(Need),
    /// Namespaces no longer have the annotation.
    Left(Vec<String>),
}

impl Pods {
    pub(super) fn new(client: &Client) -> Self {
        let all = Api::<PartialObjectMeta<Namespace>>::all(client.clone());
        let namespaces = watcher::watcher(all, watcher::Config::default()).default_backoff().boxed();
        let (sender, needs) = mpsc::channel(QUEUE_CAPACITY);
        Pods {
            client: client.clone(),
            namespaces,
            reading: BTreeSet::new(),
            watches: HashMap::new(),
            sender,
            needs,
        }
    }

    /// Waits for the next change. Safe to cancel.
    pub(super) async fn next(&mut self) -> Change {
        loop {
            let event = tokio::select! {
                Some(need) = self.needs.recv() => return Change::Need(need),
                Some(event) = self.namespaces.next() => event,
            };
            match event {
                Err(error) => tracing::warn!("watching namespaces: {error}"),
                Ok(event) => {
                    let left = self.take(event);
                    if !left.is_empty() {
                        return Change::Left(left);
                    }
                }
            }
        }
    }

    /// Applies an event about a namespace. Returns the namespaces that no longer have the annotation.
    fn take(&mut self, event: Event<PartialObjectMeta<Namespace>>) -> Vec<String> {
        let is_annotated = |namespace: &PartialObjectMeta<Namespace>| {
            namespace.annotations().get(CREATE_ON_MISS).is_some_and(|text| text == "true")
        };
        match event {
            Event::Init => self.reading.clear(),
            Event::InitApply(namespace) if is_annotated(&namespace) => {
                self.reading.insert(namespace.name_any());
                self.watch_pods(&namespace.name_any());
            }
            Event::InitApply(_) => {}
            Event::InitDone => {
                let gone = self.watches.keys().filter(|name| !self.reading.contains(*name));
                let gone: Vec<String> = gone.cloned().collect();
                gone.iter().for_each(|name| drop(self.watches.remove(name)));
                return gone;
            }
            Event::Apply(namespace) if is_annotated(&namespace) => self.watch_pods(&namespace.name_any()),
            Event::Apply(namespace) | Event::Delete(namespace) => {
                let name = namespace.name_any();
                return self.watches.remove(&name).map(|_| name).into_iter().collect();
            }
        }
        Vec::new()
    }

    fn watch_pods(&mut self, namespace: &str) {
        if self.watches.contains_key(namespace) {
            return;
        }
        if self.watches.len() >= MAX_NAMESPACES {
            tracing::warn!(
                namespace,
                "misses are not recorded: already watching the maximum of {MAX_NAMESPACES} namespaces"
            );
            return;
        }
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let name: Arc<str> = namespace.into();
        let sender = self.sender.clone();
        let watch = tokio::spawn(async move {
            let mut events = watcher::watcher(pods, watcher::Config::default()).default_backoff().boxed();
            while let Some(event) = events.next().await {
                let pod = match event {
                    Ok(Event::InitApply(pod) | Event::Apply(pod)) => pod,
                    Ok(_) => continue,
                    Err(error) => {
                        tracing::warn!(namespace = &*name, "watching pods: {error}");
                        continue;
                    }
                };
                // The receiver lives as long as the watch.
                if let Some(need) = need(&name, &pod)
                    && sender.send(need).await.is_err()
                {
                    return;
                }
            }
        });
        self.watches.insert(namespace.to_owned(), Watch(watch));
    }
}

/// Returns the images and pull secrets that a pod needs. `None` if it has ended.
fn need(namespace: &str, pod: &Pod) -> Option<Need> {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let spec = pod.spec.as_ref()?;
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let images = containers.filter_map(|container| container.image.as_deref()?.parse().ok()).collect();
    let secrets = spec.image_pull_secrets.iter().flatten().map(|secret| secret.name.clone()).collect();
    Some(Need { namespace: namespace.to_owned(), pod: pod.uid()?, images, secrets })
}
