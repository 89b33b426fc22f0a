//! The clocks that the leader saved last, in a ConfigMap.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::caches::store::StoreError;
use crate::kubernetes::fault::{opt, request};
use crate::kubernetes::names::MANAGER;
use larder_sys::clock::guard::SavedClock;

/// Name of the ConfigMap.
const NAME: &str = "larder-clock";

/// Access to the saved clocks.
#[derive(Debug)]
pub(super) struct SavedClocks(Api<ConfigMap>);

impl SavedClocks {
    pub(super) fn new(client: Client, namespace: &str) -> Self {
        SavedClocks(Api::namespaced(client, namespace))
    }

    pub(super) async fn read(&self) -> Result<Option<SavedClock>, StoreError> {
        let Some(map) = opt(request!("reading the saved clock readings", self.0.get(NAME)))? else {
            return Ok(None);
        };
        let text = map.data.and_then(|mut data| data.remove("noted"));
        // An unreadable value is treated as absent, which only delays expiry.
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }

    pub(super) async fn write(&self, clock: SavedClock) -> Result<(), StoreError> {
        let text = serde_json::to_string(&clock).map_err(|e| StoreError::Failed {
            doing: "writing",
            reason: e.to_string(),
            full: false,
        })?;
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME}, "data": {"noted": text},
        });
        let parameters = PatchParams::apply(MANAGER).force();
        request!("saving the clock readings", self.0.patch(NAME, &parameters, &Patch::Apply(&map)))?;
        Ok(())
    }
}
