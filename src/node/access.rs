//! Checks with the source registries that the user who attaches a cache can read its images.
//!
//! A cache is built with pull secrets, but no registry checks credentials when it is used later. With the
//! policy `verify`, the registries are contacted before the cache is attached. For each image they must
//! return the manifest by the digest on the volume, and the index if there is one, for the given credentials.
//!
//! - Only the registry itself is contacted, never a mirror ([`Registry::may_read`]).
//! - An image that the registry does not have, or hides, is denied, because its readers are unknown.
//! - A volume is checked as a whole. One denied image rejects all of it: layers are found by chain ID,
//!   whichever images are registered.
//! - Explicit credentials are used alone. The docker config of the current user (usually root) is only used
//!   if neither secrets nor docker configs are given.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use futures_util::{StreamExt as _, stream};
use tokio::time::{Instant, timeout_at};

use crate::builder::order::RegistryOptions;
use crate::builder::registry::connect;
use crate::config::Config;
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::pull_secret::{PullSecretName, no_credential_in};
use larder_model::reference::ImageReference;
use larder_model::seal::Content;
use larder_registry::{self, Fault, Observer, Registry, Retry};

/// Maximum number of manifests that are requested in parallel.
const MAX_PARALLEL: usize = 8;
/// Time limit for all registries, retries included. Each registry decides how slowly it answers.
const DEADLINE: Duration = Duration::from_secs(300);
/// Maximum number of refusals listed in a message.
const MAX_LISTED: usize = 5;

/// The access check before a cache is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Policy {
    /// No check
    #[default]
    Any,
    /// Check that the credentials can read all of its images from their registries
    Verify,
}

/// The access check failed, or could not be completed.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The registry client cannot be created from the configuration.
    #[error("checking access to the images of the volume: {0}")]
    Setup(larder_registry::Error),
    /// The threads for the requests cannot be started.
    #[error("checking access to the images of the volume: starting threads: {0}")]
    Threads(std::io::Error),
    /// The volume contains an image reference that no registry can resolve.
    #[error("cache.json of the volume is not valid: {0}")]
    Content(String),
    /// The credentials cannot read some images.
    #[error(transparent)]
    Refused(Refused),
}

impl AccessError {
    /// Returns the error class, which determines the exit code.
    pub fn class(&self) -> Class {
        match self {
            AccessError::Setup(e) => e.class(),
            AccessError::Threads(_) => Class::Internal,
            AccessError::Content(_) => Class::Corrupt,
            AccessError::Refused(refused) => refused.class(),
        }
    }
}

/// The images that the credentials could not be shown to read.
#[derive(Debug)]
pub struct Refused {
    /// The refused images, in the order of the volume.
    pub images: Vec<Refusal>,
    /// Number of images on the volume.
    pub of: usize,
    absent: Vec<PullSecretName>,
}

/// One image that the credentials cannot read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The image reference as given when the cache was built.
    pub image: String,
    /// `Denied`, also if the registry does not have the image; `Transient` if the registry does not respond.
    pub class: Class,
    /// The registry's answer, and a hint.
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
            "{refused} of {of} images of the volume cannot be read with these credentials, so none is attached"
        )?;
        // The refusals that decide the class come first, in case the list is cut.
        let mut images: Vec<&Refusal> = self.images.iter().collect();
        images.sort_by_key(|refusal| refusal.class != self.class());
        for Refusal { image, reason, .. } in images.iter().take(MAX_LISTED) {
            write!(f, "; {image}: {reason}")?;
        }
        if refused > MAX_LISTED {
            write!(f, "; and {} more", refused - MAX_LISTED)?;
        }
        match self.class() {
            Class::Denied if !self.absent.is_empty() => f.write_str(&no_credential_in(&self.absent)),
            _ => Ok(()),
        }
    }
}

/// A registry client with the credentials to check.
#[derive(Debug)]
pub struct AccessChecker {
    registry: Registry,
    absent: Vec<PullSecretName>,
}

impl AccessChecker {
    /// Creates a checker with the credentials of `order`, for the images of a volume. Reads the credential
    /// files.
    ///
    /// # Errors
    /// The content is not valid, or the client cannot be created.
    pub fn new(order: &RegistryOptions, config: &Config, content: &Content) -> Result<Self, AccessError> {
        let images: Vec<ImageReference> = images(content)?.into_iter().map(|image| image.reference).collect();
        let (registry, absent) = connect(&without_user_config(order), config, &images, Arc::new(LogObserver))
            .map_err(AccessError::Setup)?;
        Ok(AccessChecker { registry, absent })
    }
}

/// Removes the user's docker config if other credentials are given.
fn without_user_config(order: &RegistryOptions) -> RegistryOptions {
    let named = order.secrets_dir.is_some() || !order.pull_secrets.is_empty();
    RegistryOptions { user_docker_config: order.user_docker_config && !named, ..order.clone() }
}

/// Checks that the images of a volume can be read.
///
/// # Errors
/// [`AccessError::Refused`] lists the images that cannot be read, and those that could not be checked.
pub async fn check(policy: Policy, content: &Content, checker: &AccessChecker) -> Result<(), AccessError> {
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
        let answer = match timeout_at(deadline, checker.registry.may_read(reference, digest)).await {
            Ok(answer) => answer.err().map(|error| refused(&error)),
            Err(_) => {
                let reason = format!("no answer from {} in time; try again later", reference.registry());
                Some((Class::Transient, reason))
            }
        };
        answer.map(|refused| ((reference.name(), digest), refused))
    });
    let answers: HashMap<(String, &Digest), (Class, String)> =
        answers.buffer_unordered(MAX_PARALLEL).filter_map(std::future::ready).collect().await;
    let refusals = images.iter().filter_map(|image| {
        let refused = image.digests.iter().find_map(|digest| answers.get(&(image.reference.name(), *digest)));
        let (class, reason) = refused?.clone();
        Some(Refusal { image: image.reference.given().to_owned(), class, reason })
    });
    let refusals: Vec<Refusal> = refusals.collect();
    if refusals.is_empty() {
        return Ok(());
    }
    Err(AccessError::Refused(Refused { images: refusals, of: images.len(), absent: checker.absent.clone() }))
}

/// Blocking version of [`check`]. With [`Policy::Any`], reads no file and contacts no registry.
///
/// # Errors
/// Those of [`check`], and [`AccessError::Threads`].
pub fn check_blocking(
    policy: Policy,
    content: &Content,
    order: &RegistryOptions,
    config: &Config,
) -> Result<(), AccessError> {
    if policy == Policy::Any {
        return Ok(());
    }
    let checker = AccessChecker::new(order, config, content)?;
    let runtime = crate::blocking::current_thread();
    let runtime = runtime.map_err(AccessError::Threads)?;
    runtime.block_on(Box::pin(check(policy, content, &checker)))
}

/// An image, and the digests to request from its registry.
struct ImageDigests<'a> {
    reference: ImageReference,
    digests: Vec<&'a Digest>,
}

fn images(content: &Content) -> Result<Vec<ImageDigests<'_>>, AccessError> {
    let images = content.images.iter().map(|image| {
        let reference: ImageReference =
            image.reference.parse().map_err(|e| AccessError::Content(format!("an image of it: {e}")))?;
        // Runtimes use the name and people use the reference, so both must mean the same image.
        if reference.to_string() != image.name {
            let (name, given) = (&image.name, &image.reference);
            return Err(AccessError::Content(format!("the image {given:?} has the wrong name {name:?}")));
        }
        Ok(ImageDigests { reference, digests: [&image.manifest].into_iter().chain(&image.index).collect() })
    });
    images.collect()
}

fn refused(error: &larder_registry::Error) -> (Class, String) {
    match error {
        larder_registry::Error::Request { what, host, fault: Fault::NotFound(answer), .. } => {
            let found = format!("{what} from {host}: not found ({answer})");
            let remedy = "it was deleted or is hidden from these credentials, so access cannot be checked: use other \
                          credentials, or build the cache again";
            (Class::Denied, format!("{found}; {remedy}"))
        }
        other => (other.class(), other.to_string()),
    }
}

/// Logs retries as warnings.
#[derive(Debug)]
struct LogObserver;

impl Observer for LogObserver {
    fn retried(&self, retry: &Retry) {
        let Retry { host, what, reason, wait } = retry;
        tracing::warn!(host, what, reason, wait_ms = wait.as_millis(), "retrying a registry request");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::order::HostOverrides;
    use larder_model::job::NetworkAccess;

    #[test]
    fn the_users_docker_config_does_not_help_named_secrets() {
        let order = RegistryOptions {
            connections_per_host: 1,
            limit_rate: None,
            auth_file: None,
            credential: None,
            retries: None,
            docker_configs: Vec::new(),
            user_docker_config: true,
            secrets_dir: None,
            pull_secrets: Vec::new(),
            reach: NetworkAccess::Any,
            min_layer_rate: None,
            hosts: HostOverrides::default(),
        };
        assert!(without_user_config(&order).user_docker_config);
        let secrets_dir = Some("/s".into());
        assert!(!without_user_config(&RegistryOptions { secrets_dir, ..order.clone() }).user_docker_config);
        let pull_secrets = vec!["team:registry".parse().unwrap()];
        assert!(!without_user_config(&RegistryOptions { pull_secrets, ..order }).user_docker_config);
    }

    #[test]
    fn long_lists_of_refusals_are_cut() {
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
