//! Creates image caches for images that pods miss.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::Ordering;

use chrono::TimeDelta;
use kube::ResourceExt as _;
use kube::api::{Api, PostParams};

use super::Upkeep;
use super::evict::Room;
use super::miss::{Misses, Rule, Wanted, cache_name, key};
use super::pods::{Change, Pods};
use crate::caches::error::Error;
use crate::caches::record::RequestOrigin;
use crate::kubernetes::crd::{ImageCache, ImageCacheSpec};
use crate::kubernetes::fault::{Fault, request};
use crate::kubernetes::names::{CREATED_BY, MANAGER, MISS};
use larder_model::class::Class;
use larder_model::image_cache::spec::{MAX_SIZE_GIB, MIN_SIZE_GIB};
use larder_model::image_cache::{Spec, Status, TenantName};
use larder_model::pull_secret::PullSecretName;
use larder_model::reference::ImageReference;

/// Ratio of the size of an image cache to the size of its images in the registry.
const SIZE_FACTOR: u64 = 3;
/// Delay before an image is tried again after a permanent failure: it could not be resolved, is too large, or
/// its image cache failed.
const PERMANENT_DELAY: TimeDelta = TimeDelta::days(1);
/// Delay before an image is tried again after a transient failure, or if there is no room.
const TRANSIENT_DELAY: TimeDelta = TimeDelta::minutes(10);

/// Delay before an image is tried again while another image cache is being evicted.
const EVICTION_DELAY: TimeDelta = TimeDelta::seconds(30);

/// Images of each namespace, by their [`key`].
type Cached = HashMap<String, HashSet<String>>;

/// The reason why no image cache was created for an image, and the delay before it is tried again.
struct NotCreated(TimeDelta, String);

impl Upkeep {
    /// Creates image caches for images that pods miss. Does not return.
    pub(super) async fn run_misses(&self) {
        // Before all image caches were seen, one of them could contain the image.
        let is_on = || {
            self.service.leads() && self.complete.load(Ordering::Acquire) && self.settings().create_on_miss
        };
        loop {
            while !is_on() {
                tokio::time::sleep(self.every).await;
            }
            let mut pods = Pods::new(&self.client);
            let mut misses = Misses::default();
            let mut cached = self.cached_images();
            let mut tick = tokio::time::interval(self.every);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            while is_on() {
                tokio::select! {
                    news = pods.next() => match news {
                        Change::Need(mut need) => {
                            let of = cached.get(&need.namespace);
                            need.images.retain(|image| !contains(of, image));
                            misses.note(need, self.clock.now());
                        }
                        Change::Left(namespaces) => namespaces.iter().for_each(|name| misses.forget(name)),
                    },
                    _ = tick.tick() => {
                        cached = self.cached_images();
                        self.create_wanted(&mut misses, &cached).await;
                    }
                }
            }
        }
    }

    /// Returns the images of each namespace that image caches contain. This includes image caches of the
    /// namespace in any state, and those that are shared with it and that it accepts.
    fn cached_images(&self) -> Cached {
        let mut cached = Cached::new();
        for seen in self.seen().values() {
            let record = &seen.record;
            let mut namespaces = vec![record.tenant.as_str()];
            if record.status == Status::Available {
                let copies = seen.object.status.iter().flat_map(|status| &status.copies);
                let shared =
                    copies.filter(|copy| copy.ready && seen.object.spec.share.contains(&copy.namespace));
                namespaces.extend(shared.map(|copy| copy.namespace.as_str()));
            }
            for namespace in namespaces {
                let images = cached.entry(namespace.to_owned()).or_default();
                images.extend(record.spec.images.iter().map(key));
            }
        }
        cached
    }

    async fn create_wanted(&self, misses: &mut Misses, cached: &Cached) {
        let settings = self.settings();
        let rule = Rule {
            pods: settings.miss_pods,
            window: TimeDelta::minutes(i64::from(settings.miss_window_minutes)),
            per_hour: settings.miss_caches_per_hour,
        };
        let is_cached = |namespace: &str, image: &ImageReference| contains(cached.get(namespace), image);
        // One at a time, so that pods are recorded in between.
        let Some(wanted) = misses.due(rule, self.clock.now(), is_cached).into_iter().next() else { return };
        misses.took_turn(&wanted.namespace);
        let (namespace, image) = (&wanted.namespace, wanted.image.given());
        match self.create(&wanted).await {
            Ok(name) => {
                misses.created(self.clock.now());
                // If it fails, its record is kept for a while, and the image is not tried again for a day in
                // any case.
                misses.refuse(&wanted, self.clock.now() + PERMANENT_DELAY);
                tracing::info!(namespace, image, name, pods = wanted.pods, "image cache created on a miss");
            }
            Err(NotCreated(time, why)) => {
                misses.refuse(&wanted, self.clock.now() + time);
                tracing::info!(namespace, image, "no image cache was created on a miss: {why}");
            }
        }
    }

    async fn create(&self, wanted: &Wanted) -> Result<String, NotCreated> {
        let never = |why: String| NotCreated(PERMANENT_DELAY, why);
        let tenant: TenantName = wanted.namespace.parse().map_err(|e| never(format!("{e}")))?;
        let name = cache_name(&wanted.image);
        // A pod can name only secrets of its own namespace. A secret that Larder cannot read gives no
        // credential.
        let secrets = wanted.secrets.iter().map(|secret| format!("{}:{secret}", wanted.namespace));
        let secrets = secrets.filter(|secret| secret.parse::<PullSecretName>().is_ok());
        let mut spec = Spec {
            name: name.parse().map_err(|e| never(format!("{e}")))?,
            images: vec![wanted.image.clone()],
            size_gib: MAX_SIZE_GIB,
            retention_days: 0,
            cluster: self.cluster.clone(),
            pull_secrets: secrets.collect(),
        };
        let report =
            self.service.resolve_spec(&tenant, RequestOrigin::Cluster, &spec).await.map_err(refusal)?;
        let need = report.distinct_bytes.saturating_mul(SIZE_FACTOR).div_ceil(1 << 30);
        spec.size_gib = u32::try_from(need).unwrap_or(u32::MAX).max(MIN_SIZE_GIB);
        if spec.size_gib > MAX_SIZE_GIB {
            return Err(never(format!("it needs {need} GiB, more than {MAX_SIZE_GIB}")));
        }
        if let Err(error) = self.service.has_room(&tenant, &spec).await {
            return Err(self.room_or(&tenant, error.to_string()).await);
        }
        match self.post(&wanted.namespace, &spec).await {
            Ok(()) => Ok(name),
            Err(fault) if fault.already_exists() => {
                Err(never("an image cache of that name exists".to_owned()))
            }
            Err(fault) if fault.is_quota() => Err(self.room_or(&tenant, fault.to_string()).await),
            Err(fault) => Err(NotCreated(TRANSIENT_DELAY, fault.to_string())),
        }
    }

    /// Evicts an image cache of a namespace to make room, if one can be evicted.
    async fn room_or(&self, tenant: &TenantName, why: String) -> NotCreated {
        match self.make_room(tenant, None).await {
            Room::Coming => NotCreated(EVICTION_DELAY, format!("making room: {why}")),
            Room::None => NotCreated(TRANSIENT_DELAY, why),
        }
    }

    async fn post(&self, namespace: &str, spec: &Spec) -> Result<(), Fault> {
        let name = spec.name.as_str();
        let mut object = ImageCache::new(
            name,
            ImageCacheSpec {
                images: spec.images.iter().map(|image| image.given().to_owned()).collect(),
                image_cache_size: spec.size_gib,
                retention_days: 0,
                cluster: String::new(),
                image_pull_secrets: spec.pull_secrets.clone(),
                share: Vec::new(),
                refresh: None,
                evict: false,
            },
        );
        object.metadata.labels = Some(BTreeMap::from([(CREATED_BY.to_owned(), MISS.to_owned())]));
        let api: Api<ImageCache> = Api::namespaced(self.client.clone(), namespace);
        let parameters = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        // The watch adopts the object like one of a tenant.
        let doing = format!("creating the image cache {namespace}/{name}");
        let made = request!(&doing, api.create(&parameters, &object))?;
        tracing::debug!(namespace, name, uid = made.uid(), "created");
        Ok(())
    }
}

fn contains(images: Option<&HashSet<String>>, image: &ImageReference) -> bool {
    images.is_some_and(|images| images.contains(&key(image)))
}

fn refusal(error: Error) -> NotCreated {
    let time = match error.class() {
        Class::Transient | Class::Busy => TRANSIENT_DELAY,
        _ => PERMANENT_DELAY,
    };
    NotCreated(time, error.to_string())
}
