//! Larder's finalizer. It keeps an object until nothing is left that was made for it.
//!
//! Invariants: the finalizer is set before anything is made for an object, and removed after everything is
//! deleted. The finalizers of other programs are never changed.

use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::{Objects, corrupt};
use crate::caches::store::StoreError;
use crate::kubernetes::convert;
use crate::kubernetes::crd::ImageCache;
use crate::kubernetes::fault::request;
use crate::kubernetes::names::{FINALIZER, MANAGER};

impl Objects {
    /// Adds the finalizer to an object that does not have it.
    ///
    /// # Errors
    /// A request failed, or the object was changed.
    pub(in crate::kubernetes::store) async fn add_finalizer(
        &self,
        object: &ImageCache,
    ) -> Result<(), StoreError> {
        if has_finalizer(object) {
            return Ok(());
        }
        let ours = FINALIZER.to_owned();
        let finalizers: Vec<&String> = object.finalizers().iter().chain([&ours]).collect();
        self.set_finalizers(object, &finalizers).await
    }

    /// Removes the finalizer of an object that is being deleted and for which nothing was made.
    ///
    /// # Errors
    /// A request failed.
    pub(in crate::kubernetes::store) async fn finalize(&self, object: &ImageCache) -> Result<(), StoreError> {
        if has_finalizer(object) && object.metadata.deletion_timestamp.is_some() {
            self.remove_finalizer(object).await
        } else {
            Ok(())
        }
    }

    /// Removes Larder's finalizer from an object and keeps all others.
    pub(super) async fn remove_finalizer(&self, object: &ImageCache) -> Result<(), StoreError> {
        let finalizers: Vec<&String> =
            object.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER).collect();
        self.set_finalizers(object, &finalizers).await
    }

    /// Replaces the finalizers of the version that was read.
    async fn set_finalizers(&self, object: &ImageCache, finalizers: &[&String]) -> Result<(), StoreError> {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let api = self.api(&namespace);
        // The version makes this a compare-and-swap, so that no other finalizer is lost.
        let patch =
            json!({"metadata": {"resourceVersion": object.resource_version(), "finalizers": finalizers}});
        let doing = format!("writing the finalizers of the image cache {namespace}/{name}");
        let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let id = convert::id(&object.metadata).ok_or_else(|| corrupt(object, "it has no UID".to_owned()))?;
        match request!(&doing, api.patch(&name, &parameters, &Patch::Merge(&patch))) {
            Ok(_) => Ok(()),
            Err(fault) if fault.is_not_found() => Ok(()),
            Err(fault) if fault.is_conflict() => Err(StoreError::Changed(id)),
            Err(fault) => Err(fault.into()),
        }
    }
}

fn has_finalizer(object: &ImageCache) -> bool {
    object.finalizers().iter().any(|finalizer| finalizer == FINALIZER)
}
