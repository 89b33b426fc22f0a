//! Image caches for images that pods miss.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::Ordering;

use chrono::TimeDelta;
use kube::ResourceExt as _;
use kube::api::{Api, PostParams};

use super::Upkeep;
use super::evict::Room;
use super::miss::{Misses, Rule, Wanted, cache_name, key};
use super::pods::{News, Pods};
use crate::caches::error::Error;
use crate::caches::record::OrderedBy;
use crate::kubernetes::crd::{ImageCache, ImageCacheSpec};
use crate::kubernetes::fault::{Fault, ask};
use crate::kubernetes::names::{CREATED_BY, MANAGER, MISS};
use larder_model::class::Class;
use larder_model::image_cache::spec::{MAX_SIZE_GIB, MIN_SIZE_GIB};
use larder_model::image_cache::{Spec, Status, TenantName};
use larder_model::pull_secret::PullSecretName;
use larder_model::reference::ImageReference;

/// An image cache is this many times as large as its images are in their registry.
const TIMES: u64 = 3;
/// How long an image is not tried again after it could not be resolved, is too large, or its image cache failed.
const A_DAY: TimeDelta = TimeDelta::days(1);
/// The same after a failure that may heal, or if there is no room.
const A_WHILE: TimeDelta = TimeDelta::minutes(10);

/// The same while room is being made.
const A_MOMENT: TimeDelta = TimeDelta::seconds(30);

/// Images, by their [`key`], of each namespace.
type Cached = HashMap<String, HashSet<String>>;

/// No image cache was created for an image. It is not tried again for so long; and why.
struct Not(TimeDelta, String);

impl Upkeep {
    /// Creates image caches for images that pods miss. Does not return.
    pub(super) async fn keep_missed(&self) {
        // Before all image caches were seen, an image could be in one of them.
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
                        News::Need(mut need) => {
                            let of = cached.get(&need.namespace);
                            need.images.retain(|image| !contains(of, image));
                            misses.note(need, self.clock.now());
                        }
                        News::Left(namespaces) => namespaces.iter().for_each(|name| misses.forget(name)),
                    },
                    _ = tick.tick() => {
                        cached = self.cached_images();
                        self.create_wanted(&mut misses, &cached).await;
                    }
                }
            }
        }
    }

    /// The images that pods of each namespace have in image caches: in those of the namespace, whatever became of them, and in those
    /// that are shared with it and that it accepts.
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
        // One at a time: pods are noted in between.
        let Some(wanted) = misses.ripe(rule, self.clock.now(), is_cached).into_iter().next() else { return };
        misses.took_turn(&wanted.namespace);
        let (namespace, image) = (&wanted.namespace, wanted.image.given());
        match self.create(&wanted).await {
            Ok(name) => {
                misses.created(self.clock.now());
                // If it fails, its record is kept for a while, and the image is not tried again for a day in any case.
                misses.refuse(&wanted, self.clock.now() + A_DAY);
                tracing::info!(namespace, image, name, pods = wanted.pods, "created on a miss");
            }
            Err(Not(time, why)) => {
                misses.refuse(&wanted, self.clock.now() + time);
                tracing::info!(namespace, image, "no image cache was created on a miss: {why}");
            }
        }
    }

    async fn create(&self, wanted: &Wanted) -> Result<String, Not> {
        let never = |why: String| Not(A_DAY, why);
        let tenant: TenantName = wanted.namespace.parse().map_err(|e| never(format!("{e}")))?;
        let name = cache_name(&wanted.image);
        // A pod names secrets of its own namespace only. What Larder may not read gives no credential.
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
        let report = self.service.resolve_spec(&tenant, OrderedBy::Cluster, &spec).await.map_err(refusal)?;
        let need = report.distinct_bytes.saturating_mul(TIMES).div_ceil(1 << 30);
        spec.size_gib = u32::try_from(need).unwrap_or(u32::MAX).max(MIN_SIZE_GIB);
        if spec.size_gib > MAX_SIZE_GIB {
            return Err(never(format!("it needs {need} GiB, more than {MAX_SIZE_GIB}")));
        }
        if let Err(error) = self.service.has_room(&tenant, &spec).await {
            return Err(self.room_or(&tenant, error.to_string()).await);
        }
        match self.post(&wanted.namespace, &spec).await {
            Ok(()) => Ok(name),
            Err(fault) if fault.is_already_there() => Err(never("there is one of that name".to_owned())),
            Err(fault) if fault.is_quota() => Err(self.room_or(&tenant, fault.to_string()).await),
            Err(fault) => Err(Not(A_WHILE, fault.to_string())),
        }
    }

    /// Makes room in a namespace, if an image cache may go.
    async fn room_or(&self, tenant: &TenantName, why: String) -> Not {
        match self.make_room(tenant, None).await {
            Room::Coming => Not(A_MOMENT, format!("room is being made: {why}")),
            Room::None => Not(A_WHILE, why),
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
        // The watch takes it up as an order of the namespace.
        let doing = format!("creating the image cache {namespace}/{name}");
        let made = ask!(&doing, api.create(&parameters, &object))?;
        tracing::debug!(namespace, name, uid = made.uid(), "created");
        Ok(())
    }
}

fn contains(images: Option<&HashSet<String>>, image: &ImageReference) -> bool {
    images.is_some_and(|images| images.contains(&key(image)))
}

fn refusal(error: Error) -> Not {
    let time = match error.class() {
        Class::Transient | Class::Busy => A_WHILE,
        _ => A_DAY,
    };
    Not(time, error.to_string())
}
