//! Which image caches are wanted on a node, and by whom. Pure: what is seen in, wishes and refusals out.
//!
//! A pod may ask for image caches of its own namespace, and for those whose `share` names its namespace and which that
//! namespace accepts. Any other is reported as one that does not exist.

mod places;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::{Resource as _, ResourceExt as _};

use super::objects::{IMAGE_CACHE, REQUIRED, claim_name};
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

/// An image cache, as far as nodes care.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    record: Record,
    share: Vec<String>,
    /// Whether its snapshot can be used in the namespace of volumes, or why not.
    copy: Result<(), String>,
    object: ObjectReference,
}

impl Cache {
    /// What an object says; `None` where nothing was made of it yet. `volumes` is the namespace of volumes.
    pub(super) fn of(object: &ImageCache, volumes: &str) -> Option<Self> {
        // Whose cluster it is matters not here.
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

    /// The number of the volume that is served, while one is.
    pub(super) fn served(&self) -> Option<u32> {
        self.content().map(|content| content.generation)
    }

    fn content(&self) -> Option<&Content> {
        self.record.content.as_ref().filter(|_| self.record.status == Status::Available)
    }

    /// Whether pods of a namespace may have it. `accepts` lists the namespaces whose image caches that namespace accepts.
    fn is_for(&self, namespace: &str, accepts: Option<&str>) -> bool {
        let tenant = self.record.tenant.as_str();
        tenant == namespace
            || (self.share.iter().any(|shared| shared == namespace) && is_listed(accepts, tenant))
    }

    fn wish(&self, node: &str) -> Option<Wish> {
        self.wish_for(self.served()?, node)
    }

    /// The volume with that number, which may be one that is served no more.
    pub(super) fn wish_for(&self, generation: u32, node: &str) -> Option<Wish> {
        let content = self.content()?;
        let snapshot = content.snapshot.as_ref()?;
        let volume = VolumeId { tenant: self.record.tenant.clone(), id: self.record.id, generation };
        Some(Wish {
            claim: claim_name(&volume, node),
            name: self.record.spec.name.clone(),
            size: self.record.spec.size().0.max(snapshot.restore_size.unwrap_or(0)),
            seal: (generation == content.generation).then(|| content.digest.clone()),
            offered: self.copy.clone(),
            object: self.object.clone(),
            asked: Vec::new(),
            volume,
        })
    }
}

/// A volume that is wanted.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wish {
    /// Name of its claim.
    pub(super) claim: String,
    pub(super) volume: VolumeId,
    pub(super) name: CacheName,
    /// Bytes of the claim.
    pub(super) size: u64,
    /// Digest of what its seal says; none of one that is served no more, and only stays where it is.
    pub(super) seal: Option<Digest>,
    /// Whether its snapshot can be used, or why not.
    pub(super) offered: Result<(), String>,
    /// The ImageCache.
    pub(super) object: ObjectReference,
    /// The pods that ask for it.
    pub(super) asked: Vec<ObjectReference>,
}

impl Wish {
    /// `namespace/name` of the image cache.
    pub(super) fn cache(&self) -> String {
        format!("{}/{}", self.volume.tenant, self.name)
    }
}

/// Who asks for what.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ask {
    /// The namespace that asks; `None` is the node's own configuration, which may have any.
    namespace: Option<String>,
    /// The namespaces whose image caches that namespace accepts.
    accepts: Option<String>,
    what: What,
    /// The pod, where one asks.
    pod: Option<ObjectReference>,
}

#[derive(Clone, Debug, PartialEq)]
enum What {
    /// This one, of this namespace.
    Named(TenantName, CacheName),
    /// The best for these images; `required` is said by who does not start well without.
    Best { images: Vec<ImageReference>, required: bool },
    /// Nothing that can be understood.
    Unclear(String),
}

impl What {
    fn of(text: &str, namespace: &str, images: &[ImageReference]) -> Self {
        let best = |required| What::Best { images: images.to_vec(), required };
        match text.trim() {
            "auto" => best(false),
            "required" => best(true),
            text => {
                let full = if text.contains('/') { text.to_owned() } else { format!("{namespace}/{text}") };
                parse(&full)
                    .map_or_else(|| What::Unclear(text.to_owned()), |(of, name)| What::Named(of, name))
            }
        }
    }
}

/// What a namespace says in its annotations.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Says {
    /// The image cache that its pods want ([`IMAGE_CACHE`]).
    pub(super) image_cache: Option<String>,
    /// The namespaces whose image caches it accepts ([`ACCEPT_FROM`]).
    pub(super) accept_from: Option<String>,
}

impl Says {
    /// Reads the annotations of a namespace; `None` if it has none of these.
    pub(super) fn of(annotations: &BTreeMap<String, String>) -> Option<Self> {
        let text = |name: &str| annotations.get(name).cloned();
        let says = Says { image_cache: text(IMAGE_CACHE), accept_from: text(ACCEPT_FROM) };
        (says != Says::default()).then_some(says)
    }
}

/// Annotations of namespaces, by their names.
pub(super) type Namespaces = BTreeMap<String, Says>;

/// All that is asked for on a node, what counts more first: the configuration, namespaces, pods from the oldest on.
pub(super) fn asks(configured: &[String], namespaces: &Namespaces, pods: &[&Pod]) -> Vec<Ask> {
    let own = configured.iter().filter_map(|cache| {
        let (of, name) = parse(cache)?;
        Some(Ask { namespace: None, accepts: None, what: What::Named(of, name), pod: None })
    });
    let mut asks: Vec<Ask> = own.collect();
    for (namespace, says) in namespaces {
        let Some(text) = &says.image_cache else { continue };
        // One that is named is there before the first pod; which is best only a pod can say.
        let what = What::of(text, namespace, &[]);
        if matches!(what, What::Named(..)) {
            let accepts = says.accept_from.clone();
            asks.push(Ask { namespace: Some(namespace.clone()), accepts, what, pod: None });
        }
    }
    let mut pods: Vec<&Pod> = pods.iter().copied().filter(|pod| !has_ended(pod)).collect();
    pods.sort_by_key(|pod| {
        (pod.metadata.creation_timestamp.as_ref().map(|time| time.0), pod.uid().unwrap_or_default())
    });
    asks.extend(pods.into_iter().filter_map(|pod| ask_of(pod, namespaces)));
    asks
}

/// The namespaces whose image caches matter to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// These.
    Namespaces(BTreeSet<String>),
    /// All: a namespace accepts image caches of every other.
    All,
}

/// The namespaces whose image caches can be wanted: those that are named and permitted, and for the best one of a pod those of
/// its namespace and of all that this accepts. `held` are the namespaces of the image caches whose volumes the node has.
pub(super) fn scope<'a>(asks: &[Ask], held: impl Iterator<Item = &'a str>) -> Scope {
    let mut namespaces: BTreeSet<String> = held.map(str::to_owned).collect();
    for ask in asks {
        let accepts = ask.accepts.as_deref();
        match (&ask.what, &ask.namespace) {
            (What::Named(of, _), Some(namespace))
                if of.as_str() != namespace && !is_listed(accepts, of.as_str()) => {}
            (What::Named(of, _), _) => drop(namespaces.insert(of.to_string())),
            (What::Best { .. }, namespace) => {
                namespaces.extend(namespace.clone());
                for listed in accepts.into_iter().flat_map(|list| list.split(',')).map(str::trim) {
                    match listed {
                        "*" => return Scope::All,
                        "" => {}
                        listed => drop(namespaces.insert(listed.to_owned())),
                    }
                }
            }
            (What::Unclear(_), _) => {}
        }
    }
    Scope::Namespaces(namespaces)
}

/// What one pod asks for; `None` if neither the pod nor its namespace has an annotation.
fn ask_of(pod: &Pod, namespaces: &Namespaces) -> Option<Ask> {
    let namespace = pod.namespace().unwrap_or_default();
    let says = namespaces.get(&namespace).cloned().unwrap_or_default();
    let text = pod.annotations().get(IMAGE_CACHE).or(says.image_cache.as_ref()).map(String::as_str);
    let is_required = pod.annotations().get(REQUIRED).is_some_and(|text| text == "true");
    let what = What::of(text.or(is_required.then_some("required"))?, &namespace, &images(pod));
    let pod = Some(pod.object_ref(&()));
    Some(Ask { namespace: Some(namespace), accepts: says.accept_from, what, pod })
}

/// The image caches of pods that are on no node, by the rules of [`decide`]. Pods that ask for the same are decided once.
#[derive(Debug)]
pub(super) struct Choices<'a> {
    namespaces: &'a Namespaces,
    caches: &'a [Arc<Cache>],
    known: Vec<(Ask, Result<Wish, String>)>,
}

impl<'a> Choices<'a> {
    pub(super) fn new(namespaces: &'a Namespaces, caches: &'a [Arc<Cache>]) -> Self {
        Choices { namespaces, caches, known: Vec::new() }
    }

    /// The image cache for one pod. Its claim is of no node.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub(super) fn of(&mut self, pod: &Pod) -> Result<Wish, String> {
        let ask = ask_of(pod, self.namespaces)
            .ok_or_else(|| format!("neither the pod nor its namespace has the annotation {IMAGE_CACHE}"))?;
        let is_same = |(other, _): &&(Ask, _)| (&other.namespace, &other.what) == (&ask.namespace, &ask.what);
        if let Some((_, choice)) = self.known.iter().find(is_same) {
            return choice.clone();
        }
        let choice = choose(&ask, self.caches, "");
        self.known.push((ask, choice.clone()));
        choice
    }
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The images of a pod; what is none is for the kubelet to complain of.
fn images(pod: &Pod) -> Vec<ImageReference> {
    let spec = pod.spec.iter();
    let containers = spec.flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers));
    containers.filter_map(|container| container.image.as_deref()?.parse().ok()).collect()
}

/// What became of asks.
#[derive(Debug, Default)]
pub(super) struct Decided {
    /// Volumes, the most important first.
    pub(super) wishes: Vec<Wish>,
    /// Pods that get none, and why.
    pub(super) refused: Vec<(ObjectReference, String)>,
}

/// Decides what is wanted on a node that takes `most` volumes. The places are shared fairly between namespaces ([`places`]).
pub(super) fn decide(asks: &[Ask], caches: &[Arc<Cache>], node: &str, most: usize) -> Decided {
    let mut decided = Decided::default();
    // Pods of one kind ask for the same.
    let mut chosen: Vec<(&Ask, Result<Wish, String>)> = Vec::new();
    let mut wanted: Vec<(&Ask, Wish)> = Vec::new();
    for ask in asks {
        let is_same = |other: &Ask| (&other.namespace, &other.what) == (&ask.namespace, &ask.what);
        let known = chosen.iter().find(|(other, _)| is_same(other)).map(|(_, choice)| choice.clone());
        let choice = known.unwrap_or_else(|| {
            let choice = choose(ask, caches, node);
            chosen.push((ask, choice.clone()));
            choice
        });
        match choice {
            Ok(wish) => wanted.push((ask, wish)),
            Err(why) => decided.refused.extend(ask.pod.clone().map(|pod| (pod, why))),
        }
    }
    let claims = wanted.iter().map(|(ask, wish)| (ask.namespace.as_deref(), wish.claim.as_str()));
    let places = places::share(claims, most);
    for (ask, wish) in &wanted {
        if !places.contains(wish.claim.as_str()) {
            let why = format!(
                "this node takes {most} image caches (node.max_caches), and this one has no place among them: \
                 namespaces share the places fairly"
            );
            decided.refused.extend(ask.pod.clone().map(|pod| (pod, why)));
            continue;
        }
        let known = decided.wishes.iter().position(|known| known.claim == wish.claim);
        let at = known.unwrap_or_else(|| {
            decided.wishes.push(wish.clone());
            decided.wishes.len() - 1
        });
        decided.wishes[at].asked.extend(ask.pod.clone());
    }
    decided
}

fn choose(ask: &Ask, caches: &[Arc<Cache>], node: &str) -> Result<Wish, String> {
    let may = |cache: &&Arc<Cache>| {
        ask.namespace.as_ref().is_none_or(|namespace| cache.is_for(namespace, ask.accepts.as_deref()))
    };
    match &ask.what {
        What::Named(of, name) => {
            let found = caches
                .iter()
                .filter(may)
                .find(|cache| cache.record.tenant == *of && cache.record.spec.name == *name);
            // In the same words as one of another namespace: nobody learns of what is not his.
            let found = found.ok_or_else(|| format!("there is no image cache {of}/{name} for this pod"))?;
            found.wish(node).ok_or_else(|| format!("the image cache {of}/{name} is {}", found.record.status))
        }
        What::Best { images, required } => {
            let records = caches
                .iter()
                .filter(may)
                .filter(|cache| cache.content().is_some())
                .map(|cache| &cache.record);
            let best = matching::best(records, images);
            let chosen = best.and_then(|found| caches.iter().find(|cache| cache.id() == found.record.id));
            chosen.and_then(|cache| cache.wish(node)).ok_or_else(|| {
                let beside = if *required { "; it asks for one as required" } else { "" };
                format!("no image cache for this pod holds any of its images{beside}")
            })
        }
        What::Unclear(text) => {
            Err(format!("{IMAGE_CACHE}: want the name of an image cache, auto or required, not {text:?}"))
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
