//! Decides which image caches are wanted on a node, and for which pods. Pure: observations in, desired
//! volumes and refusals out.
//!
//! A pod can request image caches of its own namespace, and those whose `share` lists its namespace and which
//! that namespace accepts. Any other image cache is reported as nonexistent.

mod fair_share;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::{Resource as _, ResourceExt as _};

use super::labels::{IMAGE_CACHE, REQUIRED, claim_name};
use crate::caches::matching;
use crate::caches::record::{Content, Record};
use crate::caches::volumes::VolumeId;
use crate::config::node::parse;
use crate::kubernetes::convert::{self, Read};
use crate::kubernetes::crd::ImageCache;
use crate::kubernetes::names::{ACCEPT_FROM, is_listed};
use larder_model::digest::Digest;
use larder_model::image_cache::{CacheId, CacheName, Status, TenantName};
use larder_model::reference::ImageReference;

/// The fields of an image cache that matter to nodes.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    record: Record,
    share: Vec<String>,
    /// `Ok` if its snapshot can be used in the namespace of volumes, otherwise the reason.
    copy: Result<(), String>,
    object: ObjectReference,
}

impl Cache {
    /// Parses an object; `None` if it has no valid record. `volumes` is the namespace of volumes.
    pub(super) fn of(object: &ImageCache, volumes: &str) -> Option<Self> {
        // The UID of the cluster does not matter here.
        let Read::Record(record) = convert::read(object, "this") else { return None };
        let copies = object.status.iter().flat_map(|status| &status.copies);
        let copy = match copies.into_iter().find(|copy| copy.namespace == volumes) {
            Some(copy) if copy.ready => Ok(()),
            Some(copy) => {
                let why = copy.message.as_deref().unwrap_or("it is not ready yet");
                Err(format!("its snapshot cannot be used in {volumes}: {why}"))
            }
            None => Err(format!("its snapshot is not offered in {volumes} yet (node_namespace)")),
        };
        let share = object.spec.share.clone();
        Some(Cache { record: *record, share, copy, object: object.object_ref(&()) })
    }

    pub(super) fn id(&self) -> CacheId {
        self.record.id
    }

    /// Returns the number of the served volume. `None` if no volume is served.
    pub(super) fn served(&self) -> Option<u32> {
        self.content().map(|content| content.generation)
    }

    fn content(&self) -> Option<&Content> {
        self.record.content.as_ref().filter(|_| self.record.status == Status::Available)
    }

    /// Reports whether pods of a namespace can use it. `accepts` lists the namespaces whose image caches that
    /// namespace accepts.
    fn is_for(&self, namespace: &str, accepts: Option<&str>) -> bool {
        let tenant = self.record.tenant.as_str();
        tenant == namespace
            || (self.share.iter().any(|shared| shared == namespace) && is_listed(accepts, tenant))
    }

    fn desired(&self, node: &str) -> Option<DesiredVolume> {
        self.volume_for(self.served()?, node)
    }

    /// Returns the volume with that number, which may be one that is no longer served.
    pub(super) fn volume_for(&self, generation: u32, node: &str) -> Option<DesiredVolume> {
        let content = self.content()?;
        let snapshot = content.snapshot.as_ref()?;
        let volume = VolumeId { tenant: self.record.tenant.clone(), id: self.record.id, generation };
        Some(DesiredVolume {
            claim: claim_name(&volume, node),
            name: self.record.spec.name.clone(),
            size: self.record.spec.size().0.max(snapshot.restore_size.unwrap_or(0)),
            seal: (generation == content.generation).then(|| content.digest.clone()),
            offered: self.copy.clone(),
            object: self.object.clone(),
            requested_by: Vec::new(),
            volume,
        })
    }
}

/// A volume that is wanted on the node.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct DesiredVolume {
    /// Name of its claim.
    pub(super) claim: String,
    pub(super) volume: VolumeId,
    pub(super) name: CacheName,
    /// Size of the claim, bytes.
    pub(super) size: u64,
    /// Digest of the seal; `None` for a volume that is no longer served and only stays attached.
    pub(super) seal: Option<Digest>,
    /// `Ok` if its snapshot can be used, otherwise the reason.
    pub(super) offered: Result<(), String>,
    /// Reference to the ImageCache.
    pub(super) object: ObjectReference,
    /// The pods that request it.
    pub(super) requested_by: Vec<ObjectReference>,
}

impl DesiredVolume {
    /// Returns `namespace/name` of the image cache.
    pub(super) fn cache(&self) -> String {
        format!("{}/{}", self.volume.tenant, self.name)
    }
}

/// A request for an image cache.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Request {
    /// Namespace of the request; `None` for the node's own configuration, which can use any image cache.
    namespace: Option<String>,
    /// The namespaces whose image caches that namespace accepts.
    accepts: Option<String>,
    target: Target,
    /// The pod that requests it. `None` for a namespace or the configuration.
    pod: Option<ObjectReference>,
}

#[derive(Clone, Debug, PartialEq)]
enum Target {
    /// The image cache with this namespace and name.
    Named(TenantName, CacheName),
    /// The best one for these images. `required` if the pod does not start well without one.
    Best { images: Vec<ImageReference>, required: bool },
    /// A value that cannot be parsed.
    Unclear(String),
}

impl Target {
    fn of(text: &str, namespace: &str, images: &[ImageReference]) -> Self {
        let best = |required| Target::Best { images: images.to_vec(), required };
        match text.trim() {
            "auto" => best(false),
            "required" => best(true),
            text => {
                let full = if text.contains('/') { text.to_owned() } else { format!("{namespace}/{text}") };
                parse(&full)
                    .map_or_else(|| Target::Unclear(text.to_owned()), |(of, name)| Target::Named(of, name))
            }
        }
    }
}

/// The annotations of a namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Annotations {
    /// The image cache that its pods request ([`IMAGE_CACHE`]).
    pub(super) image_cache: Option<String>,
    /// The namespaces whose image caches it accepts ([`ACCEPT_FROM`]).
    pub(super) accept_from: Option<String>,
}

impl Annotations {
    /// Reads the annotations of a namespace; `None` if it has none of these.
    pub(super) fn of(annotations: &BTreeMap<String, String>) -> Option<Self> {
        let text = |name: &str| annotations.get(name).cloned();
        let annotations = Annotations { image_cache: text(IMAGE_CACHE), accept_from: text(ACCEPT_FROM) };
        (annotations != Annotations::default()).then_some(annotations)
    }
}

/// Annotations of namespaces, by namespace.
pub(super) type Namespaces = BTreeMap<String, Annotations>;

/// Returns all requests on a node by priority: the configuration, then namespaces, then pods, oldest first.
pub(super) fn requests(configured: &[String], namespaces: &Namespaces, pods: &[&Pod]) -> Vec<Request> {
    let own = configured.iter().filter_map(|cache| {
        let (of, name) = parse(cache)?;
        Some(Request { namespace: None, accepts: None, target: Target::Named(of, name), pod: None })
    });
    let mut requests: Vec<Request> = own.collect();
    for (namespace, annotations) in namespaces {
        let Some(text) = &annotations.image_cache else { continue };
        // A named image cache is attached before the first pod. The best one depends on the images of a pod.
        let target = Target::of(text, namespace, &[]);
        if matches!(target, Target::Named(..)) {
            let accepts = annotations.accept_from.clone();
            requests.push(Request { namespace: Some(namespace.clone()), accepts, target, pod: None });
        }
    }
    let mut pods: Vec<&Pod> = pods.iter().copied().filter(|pod| !has_ended(pod)).collect();
    pods.sort_by_key(|pod| {
        (pod.metadata.creation_timestamp.as_ref().map(|time| time.0), pod.uid().unwrap_or_default())
    });
    requests.extend(pods.into_iter().filter_map(|pod| request_of(pod, namespaces)));
    requests
}

/// The namespaces whose image caches concern a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Only these namespaces.
    Namespaces(BTreeSet<String>),
    /// All namespaces, because a namespace accepts image caches of every other.
    All,
}

/// Returns the namespaces whose image caches can be wanted: for a request by name the named namespace, if it
/// is permitted; for the best one of a pod its own namespace and all that this one accepts. `held` are the
/// namespaces of volumes that the node already has.
pub(super) fn scope<'a>(requests: &[Request], held: impl Iterator<Item = &'a str>) -> Scope {
    let mut namespaces: BTreeSet<String> = held.map(str::to_owned).collect();
    for request in requests {
        let accepts = request.accepts.as_deref();
        match (&request.target, &request.namespace) {
            (Target::Named(of, _), Some(namespace))
                if of.as_str() != namespace && !is_listed(accepts, of.as_str()) => {}
            (Target::Named(of, _), _) => drop(namespaces.insert(of.to_string())),
            (Target::Best { .. }, namespace) => {
                namespaces.extend(namespace.clone());
                for listed in accepts.into_iter().flat_map(|list| list.split(',')).map(str::trim) {
                    match listed {
                        "*" => return Scope::All,
                        "" => {}
                        listed => drop(namespaces.insert(listed.to_owned())),
                    }
                }
            }
            (Target::Unclear(_), _) => {}
        }
    }
    Scope::Namespaces(namespaces)
}

/// Returns the request of one pod; `None` if neither the pod nor its namespace has an annotation.
fn request_of(pod: &Pod, namespaces: &Namespaces) -> Option<Request> {
    let namespace = pod.namespace().unwrap_or_default();
    let annotations = namespaces.get(&namespace).cloned().unwrap_or_default();
    let text = pod.annotations().get(IMAGE_CACHE).or(annotations.image_cache.as_ref()).map(String::as_str);
    let is_required = pod.annotations().get(REQUIRED).is_some_and(|text| text == "true");
    let target = Target::of(text.or(is_required.then_some("required"))?, &namespace, &images(pod));
    let pod = Some(pod.object_ref(&()));
    Some(Request { namespace: Some(namespace), accepts: annotations.accept_from, target, pod })
}

/// Chooses the image caches of unscheduled pods by the rules of [`decide`]. Pods with the same request are
/// decided once.
#[derive(Debug)]
pub(super) struct Choices<'a> {
    namespaces: &'a Namespaces,
    caches: &'a [Arc<Cache>],
    chosen: Vec<(Request, Result<DesiredVolume, String>)>,
}

impl<'a> Choices<'a> {
    pub(super) fn new(namespaces: &'a Namespaces, caches: &'a [Arc<Cache>]) -> Self {
        Choices { namespaces, caches, chosen: Vec::new() }
    }

    /// Returns the image cache for one pod. Its claim is for no particular node.
    ///
    /// # Errors
    /// The reason why there is none, for people.
    pub(super) fn of(&mut self, pod: &Pod) -> Result<DesiredVolume, String> {
        let request = request_of(pod, self.namespaces)
            .ok_or_else(|| format!("neither the pod nor its namespace has the annotation {IMAGE_CACHE}"))?;
        let is_same = |(other, _): &&(Request, _)| {
            (&other.namespace, &other.target) == (&request.namespace, &request.target)
        };
        if let Some((_, choice)) = self.chosen.iter().find(is_same) {
            return choice.clone();
        }
        let choice = choose(&request, self.caches, "");
        self.chosen.push((request, choice.clone()));
        choice
    }
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Returns the images of a pod. Invalid references are skipped; the kubelet reports them.
fn images(pod: &Pod) -> Vec<ImageReference> {
    let spec = pod.spec.iter();
    let containers = spec.flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers));
    containers.filter_map(|container| container.image.as_deref()?.parse().ok()).collect()
}

/// The result of [`decide`].
#[derive(Debug, Default)]
pub(super) struct Decision {
    /// The volumes by priority, the most important first.
    pub(super) volumes: Vec<DesiredVolume>,
    /// Pods that get no image cache, with the reason.
    pub(super) refused: Vec<(ObjectReference, String)>,
}

/// Decides which volumes are wanted on a node with at most `max` volumes. Namespaces share the slots fairly
/// ([`fair_share`]).
pub(super) fn decide(requests: &[Request], caches: &[Arc<Cache>], node: &str, max: usize) -> Decision {
    let mut decision = Decision::default();
    // Pods of one kind have the same request.
    let mut chosen: Vec<(&Request, Result<DesiredVolume, String>)> = Vec::new();
    let mut wanted: Vec<(&Request, DesiredVolume)> = Vec::new();
    for request in requests {
        let is_same =
            |other: &Request| (&other.namespace, &other.target) == (&request.namespace, &request.target);
        let existing = chosen.iter().find(|(other, _)| is_same(other)).map(|(_, choice)| choice.clone());
        let choice = existing.unwrap_or_else(|| {
            let choice = choose(request, caches, node);
            chosen.push((request, choice.clone()));
            choice
        });
        match choice {
            Ok(desired) => wanted.push((request, desired)),
            Err(why) => decision.refused.extend(request.pod.clone().map(|pod| (pod, why))),
        }
    }
    let claims =
        wanted.iter().map(|(request, desired)| (request.namespace.as_deref(), desired.claim.as_str()));
    let slots = fair_share::share(claims, max);
    for (request, desired) in &wanted {
        if !slots.contains(desired.claim.as_str()) {
            let why = format!(
                "this node attaches at most {max} image caches (node.max_caches), and this one gets no slot: \
                 namespaces share the slots fairly"
            );
            decision.refused.extend(request.pod.clone().map(|pod| (pod, why)));
            continue;
        }
        let existing = decision.volumes.iter().position(|existing| existing.claim == desired.claim);
        let at = existing.unwrap_or_else(|| {
            decision.volumes.push(desired.clone());
            decision.volumes.len() - 1
        });
        decision.volumes[at].requested_by.extend(request.pod.clone());
    }
    decision
}

fn choose(request: &Request, caches: &[Arc<Cache>], node: &str) -> Result<DesiredVolume, String> {
    let may = |cache: &&Arc<Cache>| {
        request.namespace.as_ref().is_none_or(|namespace| cache.is_for(namespace, request.accepts.as_deref()))
    };
    match &request.target {
        Target::Named(of, name) => {
            let found = caches
                .iter()
                .filter(may)
                .find(|cache| cache.record.tenant == *of && cache.record.spec.name == *name);
            // The text is the same for an image cache of another namespace, so that tenants cannot probe for
            // names.
            let found = found.ok_or_else(|| format!("there is no image cache {of}/{name} for this pod"))?;
            found
                .desired(node)
                .ok_or_else(|| format!("the image cache {of}/{name} is {}", found.record.status))
        }
        Target::Best { images, required } => {
            let records = caches
                .iter()
                .filter(may)
                .filter(|cache| cache.content().is_some())
                .map(|cache| &cache.record);
            let best = matching::best(records, images);
            let chosen = best.and_then(|found| caches.iter().find(|cache| cache.id() == found.record.id));
            chosen.and_then(|cache| cache.desired(node)).ok_or_else(|| {
                let hint = if *required { "; one is required" } else { "" };
                format!("no image cache for this pod contains any of its images{hint}")
            })
        }
        Target::Unclear(text) => {
            Err(format!("{IMAGE_CACHE}: must be the name of an image cache, auto or required, not {text:?}"))
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
