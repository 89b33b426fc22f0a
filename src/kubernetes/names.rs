//! Names and labels of objects.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::ListParams;

use crate::caches::volumes::VolumeId;
use larder_model::image_cache::{CacheId, TenantName};

/// Field manager of everything that Larder applies.
pub const MANAGER: &str = "larder";
/// Finalizer that keeps an ImageCache until everything that was made for it is deleted.
pub const FINALIZER: &str = "larder.dev/content";
/// Annotation of a Secret: namespaces, separated by commas, whose image caches can use it as a pull secret;
/// `*` is all.
pub const PULL_BY: &str = "larder.dev/pull-by";
/// Annotation of a Namespace: the namespaces, separated by commas, whose shared image caches it accepts; `*`
/// is all.
pub const ACCEPT_FROM: &str = "larder.dev/accept-from";
/// Annotation of a VolumeSnapshot: the result of the build of its volume, as one JSON line.
pub const RESULT: &str = "larder.dev/result";
/// Annotation of a VolumeSnapshot: digest of the `cache.json` that the verifier found on the volume before
/// the snapshot was taken.
pub const VERIFIED: &str = "larder.dev/verified";
/// Annotation of an ImageCache: hash of the Idempotency-Key that it was created with.
pub const KEY: &str = "larder.dev/idempotency-key";
/// Annotation of an ImageCache: hash of the request that came with [`KEY`].
pub const REQUEST: &str = "larder.dev/idempotent-request";
/// Annotation of an ImageCache: a random value that identifies the create request, so that a daemon
/// recognises an object whose response was lost.
pub const NONCE: &str = "larder.dev/nonce";

/// Annotation of a claim of a node: when a pod of the node last used the image cache, RFC 3339.
pub const LAST_USED: &str = "larder.dev/last-used";

/// Label of an ImageCache that Larder created itself: the reason, such as [`MISS`].
pub const CREATED_BY: &str = "larder.dev/created-by";
/// Value of [`CREATED_BY`]: pods needed the image, and no image cache contained it.
pub const MISS: &str = "miss";

/// Mount path of the volume in a pod.
pub const VOLUME: &str = "/cache";

/// Label of a pod: the program it runs. Network policies select by it.
const APP: &str = "app.kubernetes.io/name";
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Label of every object that is made for a volume: the UID of its image cache.
pub const ID: &str = "larder.dev/id";
/// Label of every object that is made for a volume: the number of the volume.
pub const GENERATION: &str = "larder.dev/generation";
const TENANT: &str = "larder.dev/tenant";
const INSTALLATION: &str = "larder.dev/installation";

/// Names and labels of one installation. Two installations in one cluster do not touch each other's objects.
#[derive(Clone, Debug)]
pub struct Names {
    /// The namespace of this installation.
    pub namespace: String,
}

impl Names {
    /// Returns the labels of every object that is made for a volume.
    pub fn labels(&self, volume: &VolumeId) -> BTreeMap<String, String> {
        let pairs = [
            (APP, "larder-builder".to_owned()),
            (MANAGED_BY, MANAGER.to_owned()),
            (INSTALLATION, self.namespace.clone()),
            (ID, volume.id.to_string()),
            (GENERATION, volume.generation.to_string()),
            (TENANT, volume.tenant.to_string()),
        ];
        pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// Returns the labels of the Job and the pod that verify a volume. No network policy that permits traffic
    /// selects them.
    pub fn verifier_labels(&self, volume: &VolumeId) -> BTreeMap<String, String> {
        let mut labels = self.labels(volume);
        labels.insert(APP.to_owned(), "larder-verifier".to_owned());
        labels
    }

    /// Returns the label selector of everything that this installation made for image caches.
    pub fn selector(&self) -> String {
        format!("{MANAGED_BY}={MANAGER},{INSTALLATION}={},{ID}", self.namespace)
    }

    /// Selects the objects of one volume.
    pub fn of(&self, volume: &VolumeId) -> ListParams {
        ListParams::default().labels(&format!(
            "{MANAGED_BY}={MANAGER},{INSTALLATION}={},{ID}={},{GENERATION}={}",
            self.namespace, volume.id, volume.generation
        ))
    }

    /// Selects the objects of one image cache.
    pub fn of_cache(&self, id: CacheId) -> ListParams {
        ListParams::default()
            .labels(&format!("{MANAGED_BY}={MANAGER},{INSTALLATION}={},{ID}={id}", self.namespace))
    }

    /// Returns the volume that an object was made for, according to its labels.
    pub fn volume(&self, meta: &ObjectMeta) -> Option<VolumeId> {
        let labels = meta.labels.as_ref()?;
        if labels.get(MANAGED_BY)? != MANAGER || *labels.get(INSTALLATION)? != self.namespace {
            return None;
        }
        Some(VolumeId {
            tenant: labels.get(TENANT)?.parse().ok()?,
            id: labels.get(ID)?.parse().ok()?,
            generation: labels.get(GENERATION)?.parse().ok()?,
        })
    }
}

/// Returns the name of the Job, PVC, Secret and VolumeSnapshot of a volume. It fits a label (63 characters),
/// because Jobs put their name into one.
pub fn object(volume: &VolumeId) -> String {
    match volume.generation {
        1 => format!("ic-{}", volume.id),
        generation => format!("ic-{}-{generation}", volume.id),
    }
}

/// Returns the cache and the volume number of a name that [`object()`] produced.
pub fn volume_of(name: &str) -> Option<(CacheId, u32)> {
    const UUID: usize = 36;
    let rest = name.strip_prefix("ic-")?;
    let id = rest.get(..UUID)?.parse().ok()?;
    let generation = match &rest[UUID..] {
        "" => 1,
        more => more.strip_prefix('-')?.parse().ok().filter(|generation| *generation > 1)?,
    };
    Some((id, generation))
}

/// Returns the name of the Job that verifies a volume. It fits a label (63 characters).
pub fn verifier(volume: &VolumeId) -> String {
    format!("{}-verify", object(volume))
}

/// Returns the name of the content behind the copy in a namespace. Dots, which namespace names cannot
/// contain, separate the parts.
pub fn copy(volume: &VolumeId, namespace: &str) -> String {
    format!("{}.{}.{namespace}", object(volume), volume.generation)
}

/// Reports whether a list of namespaces, in the format of [`PULL_BY`] and [`ACCEPT_FROM`], contains
/// `namespace`. `None` contains none.
pub fn is_listed(list: Option<&str>, namespace: &str) -> bool {
    list.is_some_and(|list| list.split(',').map(str::trim).any(|one| one == "*" || one == namespace))
}

/// Returns the namespace of a tenant.
pub fn namespace(tenant: &TenantName) -> &str {
    tenant.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_are_read_back() {
        let names = Names { namespace: "larder".into() };
        let id = "8f14e45f-ceea-4e7a-9c2b-0123456789ab".parse().unwrap();
        let volume = VolumeId { tenant: "team-a".parse().unwrap(), id, generation: 1 };
        assert_eq!(object(&volume), "ic-8f14e45f-ceea-4e7a-9c2b-0123456789ab");
        let last = VolumeId { generation: u32::MAX, ..volume.clone() };
        for volume in [&volume, &last] {
            assert_eq!(volume_of(&object(volume)), Some((id, volume.generation)));
        }
        for other in ["ic-", "ic-1", "web", &format!("{}-1", object(&volume)), &verifier(&volume)] {
            assert_eq!(volume_of(other), None, "{other}");
        }
        assert!(verifier(&last).len() <= 63 && copy(&last, &"n".repeat(63)).len() <= 253);
        let meta = ObjectMeta { labels: Some(names.labels(&last)), ..ObjectMeta::default() };
        assert_eq!(names.volume(&meta), Some(last.clone()));
        assert_eq!(Names { namespace: "other".into() }.volume(&meta), None);
        // The sweep finds a verifier by its labels.
        let verifier = ObjectMeta { labels: Some(names.verifier_labels(&last)), ..ObjectMeta::default() };
        assert_eq!(names.volume(&verifier), Some(last.clone()));
        assert_eq!(names.volume(&ObjectMeta::default()), None);
        for (list, has) in
            [("team-a", true), ("x, team-a ", true), ("*", true), ("team-ab,te*", false), ("", false)]
        {
            assert_eq!(is_listed(Some(list), "team-a"), has, "{list}");
        }
        assert!(!is_listed(None, "team-a"));
        // The second volume of one namespace must not have the same name as the first of another.
        assert_ne!(copy(&VolumeId { generation: 2, ..volume.clone() }, "x"), copy(&volume, "2-x"));
    }
}
