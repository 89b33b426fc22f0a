//! Labels, annotations and names of the objects of a node.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::caches::volumes::VolumeId;
use crate::kubernetes::names::{MANAGER, object};
use larder_model::digest::Digest;

/// Annotation and label of claims and holders: the node; in the label as [`node_label`].
pub(super) const NODE: &str = "larder.dev/node";
/// Label of holders: the name of the claim.
pub(super) const HOLDS: &str = "larder.dev/holds";
/// Label of claims and holders: the namespace of the image cache.
pub(super) const TENANT: &str = "larder.dev/tenant";
/// Label of claims and holders: the ID of the image cache.
pub(super) const ID: &str = "larder.dev/id";
/// Label of claims and holders: the number of the volume.
pub(super) const GENERATION: &str = "larder.dev/generation";
/// Annotation of pods and namespaces: the requested image cache. Annotation of claims and holders: their
/// image cache.
pub(super) const IMAGE_CACHE: &str = "larder.dev/image-cache";
/// Annotation or label of pods, `true`. The annotation: the pod must not start before its image cache is
/// attached. The label: the pod is held back; `config/kubernetes/node/required` sets it.
pub(super) const REQUIRED: &str = "larder.dev/image-cache-required";
/// Label of a pod that is held back: the node that must attach its image cache, as [`node_label`].
pub(super) const ATTACH_ON: &str = "larder.dev/attach-on";
/// Scheduling gate of a pod that is held back (KEP-3521).
pub(super) const GATE: &str = "larder.dev/image-cache";
/// Length of the hash of a node's name in the names of objects, characters.
const NODE_HASH_CHARS: usize = 10;

/// Returns a hash of the node's name for labels and names, because names of nodes can be longer than either
/// allows.
pub(super) fn node_label(node: &str) -> String {
    Digest::sha256(node.as_bytes()).hex()[..NODE_HASH_CHARS].to_owned()
}

/// Returns the label selector of the objects that an agent made for its node.
pub(super) fn selector(node: &str) -> String {
    format!("app.kubernetes.io/managed-by={MANAGER},{NODE}={}", node_label(node))
}

/// Reports whether an object was made for this node. Two node names can have the same hash in the label.
pub(super) fn is_of(meta: &ObjectMeta, node: &str) -> bool {
    meta.annotations.as_ref().and_then(|annotations| annotations.get(NODE)).is_some_and(|of| of == node)
}

/// Returns the name of the claim for a volume on a node. It fits a label.
pub(super) fn claim_name(volume: &VolumeId, node: &str) -> String {
    format!("{}-{}", object(volume), node_label(node))
}
