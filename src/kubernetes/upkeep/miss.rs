//! Images that pods of a namespace need and that no image cache contains. Pure: observations and a time in, a
//! choice out.
//!
//! Tenants control their pods, so everything here is bounded: namespaces, images of a namespace, and pods of
//! an image.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use chrono::{DateTime, TimeDelta, Utc};

use larder_model::digest::Digest;
use larder_model::reference::ImageReference;

/// Maximum number of images that are recorded for one namespace.
const MAX_IMAGES: usize = 200;
/// Maximum number of pods that are counted for one image: the maximum of `upkeep.miss_pods`.
const MAX_PODS: usize = 100;
/// Maximum number of pull secrets that are recorded for one image.
const MAX_SECRETS: usize = 8;
/// Maximum number of images of one namespace that are not tried again for a while.
const MAX_REFUSED: usize = 1000;
/// Maximum length of the image's own name in the name of its image cache, characters.
const MAX_NAME: usize = 40;

/// The condition under which an image cache is created.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    /// Number of pods that must need the image.
    pub(super) pods: usize,
    /// Duration for which a pod counts.
    pub(super) window: TimeDelta,
    /// Maximum number of image caches that are created per hour.
    pub(super) per_hour: usize,
}

/// An image for which an image cache is wanted.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wanted {
    pub(super) namespace: String,
    pub(super) image: ImageReference,
    /// Names of pull secrets of the pods, in their namespace.
    pub(super) secrets: BTreeSet<String>,
    /// Number of pods that need the image.
    pub(super) pods: usize,
}

/// The images and pull secrets of a pod.
#[derive(Clone, Debug)]
pub(super) struct Need {
    pub(super) namespace: String,
    /// UID of the pod.
    pub(super) pod: String,
    pub(super) images: Vec<ImageReference>,
    pub(super) secrets: Vec<String>,
}

#[derive(Debug)]
struct Missed {
    image: ImageReference,
    pods: HashMap<String, DateTime<Utc>>,
    secrets: BTreeSet<String>,
}

/// The images that pods missed.
#[derive(Debug, Default)]
pub(super) struct Misses {
    /// By namespace and [`key`] of the image.
    missed: BTreeMap<String, BTreeMap<String, Missed>>,
    /// Time until which an image is not tried again, by namespace and key.
    refused: HashMap<String, HashMap<String, DateTime<Utc>>>,
    /// Times at which image caches were created.
    created: VecDeque<DateTime<Utc>>,
    /// The last turn of each namespace.
    turns: HashMap<String, u64>,
    last_turn: u64,
}

impl Misses {
    /// Records the needs of a pod at `now`. If there are too many images, the one with the fewest pods is
    /// removed.
    pub(super) fn note(&mut self, need: Need, now: DateTime<Utc>) {
        let images = self.missed.entry(need.namespace).or_default();
        for image in need.images {
            let name = key(&image);
            if images.len() >= MAX_IMAGES && !images.contains_key(&name) {
                let least = images.iter().min_by_key(|(_, missed)| missed.pods.len());
                if let Some(least) = least.map(|(name, _)| name.clone()) {
                    images.remove(&least);
                }
            }
            let missed = images.entry(name).or_insert_with(|| Missed {
                image,
                pods: HashMap::new(),
                secrets: BTreeSet::new(),
            });
            if missed.pods.len() < MAX_PODS {
                // A pod counts from when it was first seen, because a watch that restarts delivers all pods
                // again.
                missed.pods.entry(need.pod.clone()).or_insert(now);
            }
            for secret in &need.secrets {
                if missed.secrets.len() < MAX_SECRETS {
                    missed.secrets.insert(secret.clone());
                }
            }
        }
    }

    /// Removes a namespace that no longer has the annotation.
    pub(super) fn forget(&mut self, namespace: &str) {
        self.missed.remove(namespace);
        self.refused.remove(namespace);
        self.turns.remove(namespace);
    }

    /// Returns the images for which an image cache must be created at `now`. Namespaces take turns, each with
    /// its most wanted images first, so that a namespace with many images delays only itself. `is_cached`
    /// returns whether an image cache contains an image.
    pub(super) fn due(
        &mut self,
        rule: Rule,
        now: DateTime<Utc>,
        is_cached: impl Fn(&str, &ImageReference) -> bool,
    ) -> Vec<Wanted> {
        while self.created.front().is_some_and(|time| now - *time >= TimeDelta::hours(1)) {
            self.created.pop_front();
        }
        for refused in self.refused.values_mut() {
            refused.retain(|_, until| *until > now);
        }
        let mut ranked: Vec<(usize, Wanted)> = Vec::new();
        for (namespace, images) in &mut self.missed {
            let refused = self.refused.get(namespace);
            images.retain(|_, missed| {
                missed.pods.retain(|_, time| now - *time < rule.window);
                !missed.pods.is_empty()
            });
            let wanted = images.iter().filter(|(name, missed)| {
                missed.pods.len() >= rule.pods
                    && refused.is_none_or(|refused| !refused.contains_key(*name))
                    && !is_cached(namespace, &missed.image)
            });
            let mut wanted: Vec<Wanted> = wanted
                .map(|(_, missed)| Wanted {
                    namespace: namespace.clone(),
                    image: missed.image.clone(),
                    secrets: missed.secrets.clone(),
                    pods: missed.pods.len(),
                })
                .collect();
            // The sort is stable, so images with equal counts stay in the order of their names.
            wanted.sort_by_key(|wanted| std::cmp::Reverse(wanted.pods));
            ranked.extend(wanted.into_iter().enumerate());
        }
        self.missed.retain(|_, images| !images.is_empty());
        ranked.sort_by_key(|(rank, wanted)| {
            let turn = self.turns.get(&wanted.namespace).copied().unwrap_or(0);
            (turn, *rank, std::cmp::Reverse(wanted.pods))
        });
        let free = rule.per_hour.saturating_sub(self.created.len());
        ranked.into_iter().take(free).map(|(_, wanted)| wanted).collect()
    }

    /// Records that an image of a namespace was tried.
    pub(super) fn took_turn(&mut self, namespace: &str) {
        self.last_turn += 1;
        self.turns.insert(namespace.to_owned(), self.last_turn);
    }

    /// Records that an image cache was created.
    pub(super) fn created(&mut self, now: DateTime<Utc>) {
        self.created.push_back(now);
    }

    /// Records that an image must not be tried before `until`.
    pub(super) fn refuse(&mut self, wanted: &Wanted, until: DateTime<Utc>) {
        let refused = self.refused.entry(wanted.namespace.clone()).or_default();
        if refused.len() >= MAX_REFUSED {
            let first = refused.iter().min_by_key(|(_, until)| **until).map(|(name, _)| name.clone());
            first.map(|name| refused.remove(&name));
        }
        refused.insert(key(&wanted.image), until);
    }
}

/// Returns the canonical form of a reference: with registry, tag and digest.
pub(super) fn key(image: &ImageReference) -> String {
    let digest = image.digest().map(|digest| format!("@{digest}")).unwrap_or_default();
    format!("{}:{}{digest}", image.name(), image.tag().unwrap_or_default())
}

/// Returns the name of the image cache for an image. It is the same for every daemon.
pub(super) fn cache_name(image: &ImageReference) -> String {
    let last = image.repository().rsplit('/').next().unwrap_or_default();
    let plain = last.chars().map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' });
    let plain: String = plain.take(MAX_NAME).collect();
    format!("miss-{plain}-{}", &Digest::sha256(key(image).as_bytes()).hex()[..10])
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::image_cache::CacheName;

    const RULE: Rule = Rule { pods: 2, window: TimeDelta::minutes(60), per_hour: 3 };

    fn at(minutes: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::minutes(minutes)
    }

    fn need(namespace: &str, pod: &str, image: &str) -> Need {
        Need {
            namespace: namespace.into(),
            pod: pod.into(),
            images: vec![image.parse().unwrap()],
            secrets: vec!["registry".into()],
        }
    }

    fn chosen(wanted: &[Wanted]) -> Vec<String> {
        wanted.iter().map(|one| format!("{} {} {}", one.namespace, one.image.given(), one.pods)).collect()
    }

    #[test]
    fn the_most_wanted_within_the_window_and_the_hour() {
        let mut misses = Misses::default();
        for (namespace, pod, image) in [
            ("a", "1", "nginx"),
            // The same image, written differently, and the same pod again.
            ("a", "2", "docker.io/library/nginx:latest"),
            ("a", "2", "nginx"),
            ("a", "3", "redis"),
            ("a", "4", "redis"),
            ("a", "5", "redis"),
            ("a", "6", "once"),
            ("a", "7", "cached"),
            ("a", "8", "cached"),
            ("b", "9", "nginx"),
            ("b", "10", "nginx"),
        ] {
            misses.note(need(namespace, pod, image), at(0));
        }
        let is_cached = |_: &str, image: &ImageReference| image.given() == "cached";
        let wanted = misses.due(RULE, at(1), is_cached);
        assert_eq!(chosen(&wanted), ["a redis 3", "b nginx 2", "a nginx 2"]);
        assert_eq!(wanted[0].secrets, ["registry".to_owned()].into());
        misses.took_turn("a");
        assert_eq!(chosen(&misses.due(RULE, at(1), is_cached))[0], "b nginx 2");
        misses.took_turn("b");
        misses.created(at(1));
        misses.created(at(1));
        assert_eq!(misses.due(RULE, at(2), is_cached).len(), 1, "three in an hour");
        misses.refuse(&wanted[0], at(24 * 60));
        assert_eq!(chosen(&misses.due(RULE, at(3), is_cached)), ["a nginx 2"]);
        assert!(misses.due(RULE, at(60), is_cached).is_empty(), "pods count for an hour");
        assert!(misses.missed.is_empty());
        // A day later it is tried again.
        for pod in ["11", "12"] {
            misses.note(need("a", pod, "redis"), at(23 * 60 + 30));
        }
        assert!(misses.due(RULE, at(24 * 60 - 1), is_cached).is_empty());
        assert_eq!(chosen(&misses.due(RULE, at(24 * 60), is_cached)), ["a redis 2"]);
        misses.forget("a");
        assert!(misses.due(RULE, at(24 * 60), is_cached).is_empty());
    }

    #[test]
    fn pods_of_a_tenant_fill_no_memory() {
        let mut misses = Misses::default();
        for pod in 0..300 {
            misses.note(need("a", &pod.to_string(), "wanted"), at(0));
        }
        for image in 0..5000 {
            misses.note(need("a", "p", &format!("image-{image}")), at(0));
        }
        let images = &misses.missed["a"];
        assert_eq!(images.len(), MAX_IMAGES);
        assert_eq!(images["docker.io/library/wanted:latest"].pods.len(), MAX_PODS);
        let wanted = misses.due(RULE, at(0), |_, _| false).remove(0);
        for image in 0..2000 {
            let image: ImageReference = format!("image-{image}").parse().unwrap();
            misses.refuse(&Wanted { image, ..wanted.clone() }, at(10));
        }
        assert_eq!(misses.refused["a"].len(), MAX_REFUSED);
    }

    #[test]
    fn names_are_valid_and_differ() {
        let name = |image: &str| cache_name(&image.parse().unwrap());
        assert!(name("nginx").starts_with("miss-nginx-"));
        assert_eq!(name("nginx"), name("docker.io/library/nginx:latest"));
        assert_ne!(name("nginx:1"), name("nginx:2"));
        for image in ["r.io/a/b_c.x--d:1".to_owned(), format!("r.io/{}:1", "x".repeat(200))] {
            assert!(name(&image).parse::<CacheName>().is_ok(), "{image}");
        }
    }
}
