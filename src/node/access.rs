//! Whether who attaches a cache may read its images, by the word of the registries that they came from.
//!
//! A cache is built with somebody's pull secrets, and afterwards has no registry before it that would ask for them. With the
//! policy `verify` its registries are asked before it is attached: for each image they must give the manifest by the digest
//! that the volume has, and the index where it has one, for the credentials of who attaches.
//!
//! - Only the registry itself is asked, no mirror ([`Registry::may_read`]).
//! - What a registry does not have, or hides, is denied: nobody can say who may read it.
//! - A volume is one thing. One image that may not be read refuses the whole, since its layers are found by chain ID and lie
//!   beside the others, whatever images are made known.
//! - Credentials that are named stand alone: the docker config of the user who runs this, root's most often, is used only where
//!   neither secrets nor docker configs are named.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use futures_util::{StreamExt as _, stream};
use tokio::time::{Instant, timeout_at};

use crate::builder::order::RegistryOrder;
use crate::builder::registry::connect;
use crate::config::Config;
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::pull_secret::{PullSecretName, no_credential_in};
use larder_model::reference::ImageReference;
use larder_model::seal::Content;
use larder_registry::{self, Fault, Observer, Registry, Retry};

/// Manifests asked for at once.
const AT_ONCE: usize = 8;
/// Until all registries have answered, retries included: a manifest comes as slowly as a registry likes.
const DEADLINE: Duration = Duration::from_secs(300);
/// Refusals that a message tells.
const TOLD: usize = 5;

/// Who may attach a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Policy {
    /// Whoever may run the command
    #[default]
    Any,
    /// Who may read all of its images, as their registries say now
    Verify,
}

/// A cache is not for who attaches it, or nobody can say now whether it is.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The client cannot be made as configured.
    #[error("asking registries who may read the images of the volume: {0}")]
    Setup(#[from] larder_registry::Error),
    /// There are no threads to ask with.
    #[error("asking registries who may read the images of the volume: starting threads: {0}")]
    Threads(std::io::Error),
    /// The volume names something that no registry can be asked for.
    #[error("cache.json of the volume cannot be believed: {0}")]
    Content(String),
    /// Some images may not be read.
    #[error(transparent)]
    Refused(Refused),
}

impl AccessError {
    /// The class, from which the exit code follows.
    pub fn class(&self) -> Class {
        match self {
            AccessError::Setup(e) => e.class(),
            AccessError::Threads(_) => Class::Internal,
            AccessError::Content(_) => Class::Corrupt,
            AccessError::Refused(refused) => refused.class(),
        }
    }
}

/// The images that were not proven to be for who asks.
#[derive(Debug)]
pub struct Refused {
    /// They, in the order of the volume.
    pub images: Vec<Refusal>,
    /// Images of the volume.
    pub of: usize,
    absent: Vec<PullSecretName>,
}

/// One image that may not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its reference as given to the cache.
    pub image: String,
    /// `Denied`, also where the registry does not have it; `Transient` where the registry could not be asked.
    pub class: Class,
    /// What the registry answered and what helps.
    pub reason: String,
}

impl Refused {
    fn class(&self) -> Class {
        Class::decisive(self.images.iter().map(|refusal| refusal.class)).unwrap_or(Class::Internal)
    }
}

impl std::error::Error for Refused {}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (refused, of) = (self.images.len(), self.of);
        write!(
            f,
            "{refused} of {of} images of the volume are not proven to be yours to read, so none is attached"
        )?;
        // What decides comes first, where not all are told.
        let mut images: Vec<&Refusal> = self.images.iter().collect();
        images.sort_by_key(|refusal| refusal.class != self.class());
        for Refusal { image, reason, .. } in images.iter().take(TOLD) {
            write!(f, "; {image}: {reason}")?;
        }
        if refused > TOLD {
            write!(f, "; and {} more", refused - TOLD)?;
        }
        match self.class() {
            Class::Denied if !self.absent.is_empty() => f.write_str(&no_credential_in(&self.absent)),
            _ => Ok(()),
        }
    }
}

/// As whom registries are asked.
#[derive(Debug)]
pub struct Asker {
    registry: Registry,
    absent: Vec<PullSecretName>,
}

impl Asker {
    /// With the credentials of `order`, for the images of a volume. Its files are read here.
    pub fn new(order: &RegistryOrder, config: &Config, content: &Content) -> Result<Self, AccessError> {
        let images: Vec<ImageReference> = images(content)?.into_iter().map(|image| image.reference).collect();
        let (registry, absent) = connect(&alone(order), config, &images, Arc::new(ToLog))?;
        Ok(Asker { registry, absent })
    }
}

/// Credentials that are named stand alone.
fn alone(order: &RegistryOrder) -> RegistryOrder {
    let named = order.secrets_dir.is_some() || !order.pull_secrets.is_empty();
    RegistryOrder { user_docker_config: order.user_docker_config && !named, ..order.clone() }
}

/// Whether the images of a volume may be read.
///
/// # Errors
/// [`AccessError::Refused`] names those that may not, and those of which it could not be found out.
pub async fn check(policy: Policy, content: &Content, asker: &Asker) -> Result<(), AccessError> {
    if policy == Policy::Any {
        return Ok(());
    }
    let images = images(content)?;
    let mut seen = HashSet::new();
    let manifests: Vec<(&ImageReference, &Digest)> = images
        .iter()
        .flat_map(|image| image.digests.iter().map(|digest| (&image.reference, *digest)))
        .filter(|(reference, digest)| seen.insert((reference.name(), *digest)))
        .collect();
    let deadline = Instant::now() + DEADLINE;
    let answers = stream::iter(manifests).map(|(reference, digest)| async move {
        let answer = match timeout_at(deadline, asker.registry.may_read(reference, digest)).await {
            Ok(answer) => answer.err().map(|error| refused(&error)),
            Err(_) => {
                let reason = format!("no answer from {} in time; try again later", reference.registry());
                Some((Class::Transient, reason))
            }
        };
        answer.map(|refused| ((reference.name(), digest), refused))
    });
    let answers: HashMap<(String, &Digest), (Class, String)> =
        answers.buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect().await;
    let refusals = images.iter().filter_map(|image| {
        let refused = image.digests.iter().find_map(|digest| answers.get(&(image.reference.name(), *digest)));
        let (class, reason) = refused?.clone();
        Some(Refusal { image: image.reference.given().to_owned(), class, reason })
    });
    let refusals: Vec<Refusal> = refusals.collect();
    if refusals.is_empty() {
        return Ok(());
    }
    Err(AccessError::Refused(Refused { images: refusals, of: images.len(), absent: asker.absent.clone() }))
}

/// The same for who has no runtime. With [`Policy::Any`] no file is read and nobody is asked.
pub fn check_blocking(
    policy: Policy,
    content: &Content,
    order: &RegistryOrder,
    config: &Config,
) -> Result<(), AccessError> {
    if policy == Policy::Any {
        return Ok(());
    }
    let asker = Asker::new(order, config, content)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(AccessError::Threads)?;
    runtime.block_on(Box::pin(check(policy, content, &asker)))
}

/// An image, and what its registry is asked for.
struct Asked<'a> {
    reference: ImageReference,
    digests: Vec<&'a Digest>,
}

fn images(content: &Content) -> Result<Vec<Asked<'_>>, AccessError> {
    let images = content.images.iter().map(|image| {
        let reference: ImageReference =
            image.reference.parse().map_err(|e| AccessError::Content(format!("an image of it: {e}")))?;
        // Runtimes go by the one, people by the other: the registry is asked for what both mean.
        if reference.to_string() != image.name {
            let (name, given) = (&image.name, &image.reference);
            return Err(AccessError::Content(format!(
                "it calls the image {given:?} {name:?}, which it is not"
            )));
        }
        Ok(Asked { reference, digests: [&image.manifest].into_iter().chain(&image.index).collect() })
    });
    images.collect()
}

fn refused(error: &larder_registry::Error) -> (Class, String) {
    match error {
        larder_registry::Error::Request { what, host, fault: Fault::NotFound(answer) } => {
            let found = format!("{what} from {host}: not found ({answer})");
            let remedy = "it was deleted or is hidden from these credentials, and who may read it cannot be asked: give \
                          others, or build the cache anew";
            (Class::Denied, format!("{found}; {remedy}"))
        }
        other => (other.class(), other.to_string()),
    }
}

/// Retries go to the log.
#[derive(Debug)]
struct ToLog;

impl Observer for ToLog {
    fn retried(&self, retry: &Retry) {
        let Retry { host, what, reason, wait } = retry;
        tracing::warn!(host, what, reason, wait_ms = wait.as_millis(), "a registry is asked again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::job::Reach;

    #[test]
    fn the_users_docker_config_does_not_help_named_secrets() {
        let order = RegistryOrder {
            connections_per_host: 1,
            limit_rate: None,
            docker_configs: Vec::new(),
            user_docker_config: true,
            secrets_dir: None,
            pull_secrets: Vec::new(),
            reach: Reach::Any,
            min_layer_rate: None,
        };
        assert!(alone(&order).user_docker_config);
        let secrets_dir = Some("/s".into());
        assert!(!alone(&RegistryOrder { secrets_dir, ..order.clone() }).user_docker_config);
        let pull_secrets = vec!["team:registry".parse().unwrap()];
        assert!(!alone(&RegistryOrder { pull_secrets, ..order }).user_docker_config);
    }

    #[test]
    fn many_refusals_are_told_in_short() {
        let refusal = |number: usize| Refusal {
            image: format!("r.io/app-{number}:1"),
            class: if number == 9 { Class::Denied } else { Class::Transient },
            reason: format!("reason {number}"),
        };
        let images: Vec<Refusal> = (0..10).map(refusal).collect();
        let refused = |absent| Refused { images: images.clone(), of: 12, absent };
        let error = AccessError::Refused(refused(vec!["team:registry".parse().unwrap()]));
        let text = error.to_string();
        assert_eq!(error.class(), Class::Denied);
        assert!(
            text.starts_with("10 of 12 images") && text.contains("attached; r.io/app-9:1: reason 9"),
            "{text}"
        );
        assert!(
            text.contains("reason 3") && !text.contains("reason 4") && text.contains("and 5 more"),
            "{text}"
        );
        assert!(text.contains("team:registry"), "{text}");
    }
}
