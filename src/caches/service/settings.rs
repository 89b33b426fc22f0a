//! The settings that a reload can change.

use std::collections::HashMap;
use std::fmt;
use std::sync::{PoisonError, RwLock};

use chrono::{DateTime, Utc};

use crate::caches::pull_secrets;
use crate::caches::record::RequestOrigin;
use crate::config::caches::Caches;
use crate::config::tenant::ADMIN;
use crate::config::{Config, cluster};
use larder_model::image_cache::{Spec, TenantName};
use larder_model::job::{Job, NetworkAccess};
use larder_model::pull_secret::PullSecretName;
use larder_model::size::VolumeSize;

/// The current settings. A reload replaces them as a whole.
#[derive(Debug)]
pub(super) struct Settings(RwLock<Values>);

/// Settings from one version of the configuration.
pub(super) struct Values {
    pub(super) caches: Caches,
    /// UIDs of the clusters that an order can name. Empty if it can name any.
    clusters: Vec<String>,
    /// `true` if only the administrator can order caches.
    pub(super) alone: bool,
    /// Patterns of the pull secrets that each tenant can use.
    secrets: HashMap<TenantName, Vec<String>>,
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Values").finish_non_exhaustive()
    }
}

impl Values {
    fn of(config: &Config) -> Self {
        let everything = (ADMIN.parse::<TenantName>(), vec!["*".to_owned()]);
        let tenants = config.tenant.iter().map(|tenant| (tenant.name.parse(), tenant.pull_secrets.clone()));
        let secrets = [everything].into_iter().chain(tenants);
        Values {
            caches: config.caches.clone(),
            alone: config.tenant.iter().all(|tenant| tenant.name == ADMIN)
                && cluster::kubernetes(&config.cluster).is_none(),
            clusters: config.cluster.iter().map(|cluster| cluster.uid.clone()).collect(),
            secrets: secrets.filter_map(|(name, patterns)| Some((name.ok()?, patterns))).collect(),
        }
    }
}

impl Settings {
    pub(super) fn new(config: &Config) -> Self {
        Settings(RwLock::new(Values::of(config)))
    }

    pub(super) fn reload(&self, config: &Config) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Values::of(config);
    }

    /// Reads settings that belong together.
    pub(super) fn read<T>(&self, read: impl FnOnce(&Values) -> T) -> T {
        read(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the UID of the first cluster. `None` if an order can name any.
    pub(super) fn first_cluster(&self) -> Option<String> {
        self.read(|values| values.clusters.first().cloned())
    }

    /// Returns `true` if an order can name this cluster.
    pub(super) fn has_cluster(&self, uid: &str) -> bool {
        self.read(|values| values.clusters.is_empty() || values.clusters.iter().any(|known| known == uid))
    }

    /// Splits the pull secrets of an order into those that its tenant can use and the others.
    pub(super) fn secrets(
        &self,
        tenant: &TenantName,
        spec: &Spec,
        by: RequestOrigin,
    ) -> (Vec<PullSecretName>, Vec<String>) {
        let patterns = match by {
            RequestOrigin::Api => self.read(|values| values.secrets.get(tenant).cloned().unwrap_or_default()),
            // The reader of the secret checks whether it allows this namespace.
            RequestOrigin::Cluster => vec!["*".to_owned()],
        };
        pull_secrets::split(&patterns, &spec.pull_secrets)
    }

    /// Returns the job of an order. The caller adds what depends on the volume.
    pub(super) fn job(
        &self,
        tenant: &TenantName,
        by: RequestOrigin,
        spec: &Spec,
        pull_secrets: Vec<PullSecretName>,
        deadline: Option<DateTime<Utc>>,
    ) -> Job {
        // A namespace can have the administrator's name, but remains an ordinary tenant.
        let administrator = by == RequestOrigin::Api && tenant.as_str() == ADMIN;
        Job {
            version: larder_model::job::VERSION,
            source: None,
            images: spec.images.clone(),
            size: Some(VolumeSize::Given(spec.size())),
            sizing: None,
            platform: None,
            volume_kind: None,
            layer_format: None,
            verity: None,
            pull_secrets,
            deadline,
            result_file: None,
            tar_split: None,
            reach: if administrator { NetworkAccess::Any } else { NetworkAccess::Tenant },
            min_layer_rate: self.read(|values| Some(values.caches.min_layer_rate).filter(|rate| rate.0 > 0)),
        }
    }
}
