//! The agent: pass after pass, each from what is seen, until nothing is left to do.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chrono::Utc;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::act::{Hands, Trouble};
use super::attacher::{self, Attacher};
use super::backoff::Backoff;
use super::holding::{Holding, Step};
use super::known::Known;
use super::objects;
use super::readiness::State;
use super::tell::{News, Teller};
use super::used;
use super::wish::{self, Cache, Wish};
use crate::config::node::Node;
use crate::telemetry::metrics::{Metrics, NodeCache};
use larder_model::class::Class;
use larder_model::image_cache::CacheId;

/// The least time from the end of a pass to the next: what changes together is seen together.
const SETTLE: Duration = Duration::from_millis(100);
/// The longest.
const AGAIN: Duration = Duration::from_secs(60);
/// The time to the next pass after one that could not see what it needs.
const SOON: Duration = Duration::from_secs(5);

/// How often the Node object is compared with what it should say, if nothing changes.
const PUBLISH_AGAIN: Duration = Duration::from_secs(600);
/// How long after a failure it is tried again.
const PUBLISH_SOON: Duration = Duration::from_secs(5);

/// How an agent goes about it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The configuration.
    pub config: Node,
    /// Name of the node.
    pub node: String,
}

/// What is remembered of one volume from pass to pass. Nothing of it is needed: it only spares work.
#[derive(Debug)]
struct Memory {
    backoff: Backoff,
    /// UID of the pod from whose mount it was last attached, or seen to be.
    from: Option<String>,
    /// Since when it is wanted and not there, for [`News::Late`] and for the metric.
    since: Instant,
    /// Since when nobody wants it.
    unwanted: Option<Instant>,
    /// When its last use was written.
    used: Option<Instant>,
}

impl Memory {
    fn new(now: Instant) -> Self {
        Memory { backoff: Backoff::default(), from: None, since: now, unwanted: None, used: None }
    }
}

/// The agent of one node.
#[derive(Debug)]
pub struct Agent {
    settings: Settings,
    hands: Hands,
    known: Known,
    wake: Arc<Notify>,
    teller: Teller,
    metrics: Metrics,
    ready: Arc<AtomicBool>,
    memory: HashMap<String, Memory>,
    places: Places,
    /// What the Node object was last made to say, and when.
    published: Option<(State, Instant)>,
}

/// How many claims the node may still get, as the current pass has found it.
#[derive(Debug, Default)]
struct Places {
    free: usize,
    /// The image caches that have a claim.
    held: HashSet<CacheId>,
}

impl Places {
    /// Those of a node that takes `most`. A claim that is being deleted has its place until it is gone: so has its disk.
    fn of(holdings: &HashMap<String, Holding>, most: usize) -> Self {
        let claims = holdings.values().filter_map(|holding| holding.claim.as_deref());
        let (count, held) = claims.fold((0, HashSet::new()), |(count, mut held), claim| {
            held.extend(objects::volume_of(claim).map(|(id, _)| id));
            (count + 1, held)
        });
        Places { free: most.saturating_sub(count), held }
    }

    /// Takes a place for a claim, if there is one. The next volume of an image cache needs none: the volume before it goes as
    /// soon as this one is attached.
    fn take(&mut self, id: CacheId) -> bool {
        let free = self.free > 0;
        self.free = self.free.saturating_sub(1);
        free || self.held.contains(&id)
    }
}

impl Agent {
    /// One that begins to watch. In a runtime.
    pub fn new(client: Client, settings: Settings, attacher: Arc<dyn Attacher>, metrics: Metrics) -> Self {
        let wake = Arc::new(Notify::new());
        let known = Known::new(&client, &settings.node, &settings.config.namespace, &wake);
        let teller = Teller::new(client.clone(), &settings.node);
        let hands = Hands { client: client.into(), settings: settings.clone(), attacher };
        let (ready, memory) = (Arc::default(), HashMap::new());
        let places = Places::default();
        Agent { settings, hands, known, wake, teller, metrics, ready, memory, places, published: None }
    }

    /// Whether everything was looked at once.
    pub fn readiness(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.ready)
    }

    /// Goes on until `stop`. What is attached stays: containers of it run on.
    pub async fn run(&mut self, stop: &CancellationToken) {
        tokio::select! {
            () = self.known.ready() => {}
            () = stop.cancelled() => return,
        }
        loop {
            let next = self.pass().await;
            let wake = Arc::clone(&self.wake);
            tokio::select! {
                () = async {
                    tokio::time::sleep(SETTLE).await;
                    let _ = tokio::time::timeout(next.saturating_sub(SETTLE), wake.notified()).await;
                } => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Looks at everything, takes a step for each volume, and answers when to look again at the latest.
    async fn pass(&mut self) -> Duration {
        let pods = self.known.pods();
        let pods: Vec<&Pod> = pods.iter().map(AsRef::as_ref).collect();
        let config = &self.settings.config;
        let asks = wish::asks(&config.caches, &self.known.namespaces(), &pods);
        let claims = self.known.claims();
        let scope = wish::scope(&asks, claims.values().filter_map(|claim| objects::tenant_of(claim)));
        if !self.known.look_at(&scope).await {
            tracing::warn!(
                "the image caches that pods want are not known: the API server does not list them"
            );
            return SOON;
        }
        let caches = self.known.caches();
        let decided = wish::decide(&asks, &caches, &self.settings.node, config.max_caches);
        for (pod, why) in &decided.refused {
            self.teller.tell(pod, News::Refused, why);
        }
        let attached = match self.hands.attached().await {
            Ok(attached) => attached,
            // Nothing is to be done as long as it is not known what is.
            Err(trouble) => {
                tracing::error!("what is attached is not known: {}", trouble.reason);
                return AGAIN;
            }
        };
        let mut next = AGAIN;
        let mut states: HashMap<NodeCache, usize> = HashMap::new();
        let mut wishes: HashMap<&str, &Wish> =
            decided.wishes.iter().map(|wish| (wish.claim.as_str(), wish)).collect();
        let (holdings, orphans) = self.holdings(&attached, wishes.keys().copied());
        self.places = Places::of(&holdings, self.settings.config.max_caches);
        let kept = self.keep(&holdings, &wishes, &caches, &mut next);
        wishes.extend(kept.iter().map(|wish| (wish.claim.as_str(), wish)));
        // What is wanted first: letting go may take its time.
        let mut attached: Vec<&Wish> = Vec::new();
        let mut order: Vec<(&String, &Holding)> = holdings.iter().collect();
        order.sort_by_key(|(claim, _)| (!wishes.contains_key(claim.as_str()), *claim));
        for (claim, holding) in order {
            let wish = wishes.get(claim.as_str()).copied();
            let (state, again) = self.advance(claim, holding, wish).await;
            next = next.min(again);
            if let Some(state) = state {
                *states.entry(state).or_default() += 1;
            }
            attached.extend(wish.filter(|_| state == Some(NodeCache::Attached)));
            if let (Some(wish), Some(NodeCache::Attached)) = (wish, state) {
                self.note_use(holding, wish);
            }
        }
        let readiness = State::of(attached.into_iter(), &self.settings.config.caches);
        next = next.min(self.publish(readiness).await);
        for name in orphans {
            let (state, again) = self.let_go_of(&name).await;
            next = next.min(again);
            if let Some(state) = state {
                *states.entry(state).or_default() += 1;
            }
        }
        self.metrics.node_caches(|state| states.get(&state).copied().unwrap_or(0));
        self.ready.store(true, Ordering::Release);
        next
    }

    /// Makes the Node object say what is attached, if that is configured. Returns when to look again at the latest.
    async fn publish(&mut self, state: State) -> Duration {
        let is_said = |(said, at): &(State, Instant)| *said == state && at.elapsed() < PUBLISH_AGAIN;
        if !self.settings.config.readiness || self.published.as_ref().is_some_and(is_said) {
            return AGAIN;
        }
        match state.publish(&self.hands.client, &self.settings.node).await {
            Ok(()) => {
                self.published = Some((state, Instant::now()));
                AGAIN
            }
            Err(fault) => {
                tracing::warn!("{fault}");
                PUBLISH_SOON
            }
        }
    }

    /// What there is of each volume that is wanted or was made; and what is attached of which nothing else is left.
    fn holdings<'a>(
        &self,
        attached: &BTreeSet<String>,
        wanted: impl Iterator<Item = &'a str>,
    ) -> (HashMap<String, Holding>, Vec<String>) {
        let mut holdings: HashMap<String, Holding> =
            wanted.map(|claim| (claim.to_owned(), Holding::default())).collect();
        for (name, claim) in self.known.claims() {
            holdings.entry(name).or_default().claim = Some(claim);
        }
        for pod in self.known.holders() {
            if let Some(claim) = objects::holds(&pod) {
                holdings.entry(claim.to_owned()).or_default().pods.push(pod);
            }
        }
        let mut orphans = attached.clone();
        for (claim, holding) in &mut holdings {
            holding.attached = orphans.remove(&attacher::name(claim));
            holding.from = self.memory.get(claim).and_then(|memory| memory.from.clone());
        }
        (holdings, orphans.into_iter().collect())
    }

    /// Volumes that nobody asks for and that stay all the same: those of a cache that is made anew, until the new one is there,
    /// and those that were asked for a moment ago, while there is room.
    fn keep(
        &mut self,
        holdings: &HashMap<String, Holding>,
        wishes: &HashMap<&str, &Wish>,
        caches: &[Arc<Cache>],
        next: &mut Duration,
    ) -> Vec<Wish> {
        let now = Instant::now();
        let for_so_long = Duration::from_secs(60 * u64::from(self.settings.config.keep_minutes));
        let mut kept: Vec<Wish> = Vec::new();
        for (claim, holding) in holdings {
            let memory = self.memory.entry(claim.clone()).or_insert_with(|| Memory::new(now));
            if wishes.contains_key(claim.as_str()) {
                memory.unwanted = None;
                continue;
            }
            if !holding.attached {
                continue;
            }
            let Some((id, generation)) = holding.claim.as_deref().and_then(objects::volume_of) else {
                continue;
            };
            let Some(cache) = caches.iter().find(|cache| cache.id() == id) else { continue };
            let Some(served) = cache.served() else { continue };
            let successor = wishes.values().find(|wish| wish.volume.id == id);
            let stays = match successor {
                Some(wish) => holdings.get(&wish.claim).is_none_or(|other| !other.attached),
                None if served != generation => false,
                None => {
                    let room = wishes.len() + kept.len() < self.settings.config.max_caches;
                    let since = *memory.unwanted.get_or_insert(now);
                    let left = for_so_long.saturating_sub(now - since);
                    if !left.is_zero() {
                        *next = (*next).min(left);
                    }
                    room && !left.is_zero()
                }
            };
            if stays && let Some(wish) = cache.wish_for(generation, &self.settings.node) {
                kept.push(wish);
            }
        }
        kept
    }

    /// Takes the next step for one volume; what is told of it, and when to look again at the latest.
    async fn advance(
        &mut self,
        claim: &str,
        holding: &Holding,
        wish: Option<&Wish>,
    ) -> (Option<NodeCache>, Duration) {
        let now = Instant::now();
        let step = match (holding.step(wish, &self.settings.node), wish) {
            // What has no place any more may be in use still: the node must not get more disks than it takes.
            (Step::MakeClaim, Some(wish)) if !self.places.take(wish.volume.id) => {
                let most = self.settings.config.max_caches;
                Step::Wait(format!(
                    "the node has {most} image caches (node.max_caches), and one has to go first"
                ))
            }
            (step, _) => step,
        };
        let state = match (&step, wish) {
            (Step::Gone, _) => None,
            (Step::Held, _) => Some(NodeCache::Attached),
            (_, Some(_)) => Some(NodeCache::Waiting),
            (_, None) => Some(NodeCache::Leaving),
        };
        match &step {
            Step::Gone => {
                self.memory.remove(claim);
                return (state, AGAIN);
            }
            Step::Held => {
                if let Some(memory) = self.memory.get_mut(claim) {
                    memory.since = now;
                }
                if let Some(wish) = wish {
                    self.tell(wish, News::Attached, &format!("{} is attached on this node", wish.cache()));
                }
                return (state, AGAIN);
            }
            Step::Wait(why) => return (state, self.waits(claim, wish, why, now)),
            _ => {}
        }
        let memory = self.memory.entry(claim.to_owned()).or_insert_with(|| Memory::new(now));
        if let Some(until) = memory.backoff.until(now) {
            return (state, until - now);
        }
        let since = memory.since;
        let taken = self.hands.take(claim, holding, wish, &step).await;
        if taken.is_ok() && matches!(step, Step::Attach { .. }) && !holding.attached {
            self.metrics.node_attached(since.elapsed());
        }
        self.note(claim, wish, &step, taken).map_or((state, AGAIN), |again| (state, again))
    }

    /// Writes in the background that pods of the node use an image cache, if they do and it was not written lately.
    fn note_use(&mut self, holding: &Holding, wish: &Wish) {
        let Some(memory) = self.memory.get_mut(&wish.claim) else { return };
        let lately = memory.used.is_some_and(|time| time.elapsed() < used::EVERY);
        if wish.asked.is_empty() || lately || !used::is_due(holding.claim.as_deref(), Utc::now()) {
            return;
        }
        // A failure costs nothing but accuracy, and must not be repeated with each pass.
        memory.used = Some(Instant::now());
        let (api, claim) = (self.hands.api(), wish.claim.clone());
        tokio::spawn(async move {
            if let Err(fault) = used::write(&api, &claim, Utc::now()).await {
                tracing::warn!(claim, "{fault}");
            }
        });
    }

    /// What came of a step; when it is to be taken again, where it failed.
    fn note(
        &mut self,
        claim: &str,
        wish: Option<&Wish>,
        step: &Step,
        taken: Result<(), Trouble>,
    ) -> Option<Duration> {
        let now = Instant::now();
        let memory = self.memory.entry(claim.to_owned()).or_insert_with(|| Memory::new(now));
        let trouble = match taken {
            Ok(()) => {
                memory.backoff.done();
                tracing::info!(claim, "done: {step:?}");
                if let Step::Attach { uid, .. } = step {
                    memory.from = Some(uid.clone());
                    self.wake.notify_one();
                } else if *step == Step::Detach {
                    memory.from = None;
                    self.wake.notify_one();
                }
                return None;
            }
            Err(trouble) => trouble,
        };
        memory.backoff.failed(now);
        let again = memory.backoff.until(now).map(|until| until - now);
        match trouble.class {
            Class::Busy => tracing::info!(claim, "later: {}", trouble.reason),
            _ => {
                tracing::warn!(claim, "tried again later: {}", trouble.reason);
                self.metrics.node_failure();
                // What the API server fails at is no news for tenants.
                if let (Some(wish), Step::Attach { .. }) = (wish, step) {
                    let note = format!("{} cannot be attached: {}", wish.cache(), trouble.reason);
                    self.tell(wish, News::Failed, &note);
                }
            }
        }
        again
    }

    /// Nothing can be done for now. It is told when that has been so for long.
    fn waits(&mut self, claim: &str, wish: Option<&Wish>, why: &str, now: Instant) -> Duration {
        let Some(wish) = wish else { return AGAIN };
        let patience = Duration::from_secs(60 * u64::from(self.settings.config.pending_timeout_minutes));
        let memory = self.memory.entry(claim.to_owned()).or_insert_with(|| Memory::new(now));
        let left = patience.saturating_sub(now - memory.since);
        if left.is_zero() {
            let namespace = &self.settings.config.namespace;
            let note = format!(
                "{} is not attached yet: {why} (kubectl -n {namespace} describe pvc,pod)",
                wish.cache()
            );
            tracing::warn!(claim, "{note}");
            self.tell(wish, News::Late, &note);
            return AGAIN;
        }
        left
    }

    /// Tells the pods that ask for it; the ImageCache, where no pod does and it goes not well.
    fn tell(&mut self, wish: &Wish, news: News, note: &str) {
        for pod in &wish.asked {
            self.teller.tell(pod, news, note);
        }
        if wish.asked.is_empty() && news != News::Attached {
            let object = &wish.object;
            self.teller.tell(object, news, &format!("{}: {note}", self.settings.node));
        }
    }

    /// Detaches what nobody knows any more: its claim and holder were deleted by somebody else.
    async fn let_go_of(&mut self, name: &str) -> (Option<NodeCache>, Duration) {
        let now = Instant::now();
        let memory = self.memory.entry(name.to_owned()).or_insert_with(|| Memory::new(now));
        let state = Some(NodeCache::Leaving);
        if let Some(until) = memory.backoff.until(now) {
            return (state, until - now);
        }
        match self.hands.detach(name.to_owned()).await {
            Ok(()) => {
                self.memory.remove(name);
                (None, AGAIN)
            }
            failed => {
                let again = self.note(name, None, &Step::Detach, failed);
                (state, again.unwrap_or(AGAIN))
            }
        }
    }
}
