//! The registry client of an order. Converts the configuration to the client's options, looks up credentials
//! in secrets, and reports retries as events.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::events::Events;
use super::order::{BuildRequest, HostOverrides, RegistryOptions};
use super::remote::Fetcher;
use super::supervisor::SupervisorClient;
use crate::config::{Config, registry as section};
use larder_layer::limits::{Limits, Ratio};
use larder_model::credential::Credential;
use larder_model::event::milliseconds;
use larder_model::event::{Event, Failure};
use larder_model::job::NetworkAccess;
use larder_model::pull_secret::PullSecretName;
use larder_model::reference::ImageReference;
use larder_registry::hosts::{Host, Hosts, Mirror, Server, Tls};
use larder_registry::{
    Credentials, CredentialsError, Error, MinRate, Observer, Options, Ranges, Registry, Replacement, Retries,
    Retry, Rules, Timeouts, Unreachable,
};
use larder_secrets::docker_config_file::DockerConfig;
use larder_secrets::keyring::Keyring;
use larder_secrets::{Secrets, directory};
use larder_sys::interfaces;

/// Maximum duration of the attempts at a registry that never answers, for a command that a user runs.
const UNREACHABLE: Duration = Duration::from_secs(120);

/// Creates the client of a build. Also returns the pull secrets without credentials.
pub(super) fn client(
    order: &BuildRequest,
    config: &Config,
    events: &Events,
) -> Result<(Registry, Vec<PullSecretName>), Vec<Failure>> {
    let observer = Arc::new(ToEvents(events.clone()));
    match &order.supervisor {
        Some(supervisor) => {
            let credentials = Arc::new(supervisor.clone());
            let registry = with_credentials(&order.registry, config, &order.images, credentials, observer);
            registry.map(|registry| (registry, Vec::new()))
        }
        None => connect(&order.registry, config, &order.images, observer),
    }
    .map_err(set_up)
}

/// Creates a client for the registries of `images`. Also returns the pull secrets without credentials. All
/// files except docker configs are read here, so that the process can be confined afterwards.
///
/// # Errors
/// The configuration of a registry is invalid, or a file in it cannot be read.
pub fn connect(
    order: &RegistryOptions,
    config: &Config,
    images: &[ImageReference],
    observer: Arc<dyn Observer>,
) -> Result<(Registry, Vec<PullSecretName>), Error> {
    let secrets = secrets(order, images);
    let absent = secrets.absent().to_vec();
    Ok((with_credentials(order, config, images, Arc::new(FromSecrets(secrets)), observer)?, absent))
}

/// Creates a client for the registries of `images` with the given source of credentials. All other files are
/// read here, so that the process can be confined afterwards.
fn with_credentials(
    order: &RegistryOptions,
    config: &Config,
    images: &[ImageReference],
    credentials: Arc<dyn Credentials>,
    observer: Arc<dyn Observer>,
) -> Result<Registry, Error> {
    let mut options = options(order, &config.registry, config.build.memory_budget.0);
    options.rules = rules(order.reach, &config.registry)?;
    options.hosts = hosts_of(images, order, &config.registry)?;
    let registry = Registry::new(options, credentials, observer)?;
    registry.read_ahead(images.iter().map(ImageReference::registry));
    Ok(registry)
}

/// Creates the fetcher of a build, which requests credentials from its supervisor.
pub fn fetcher(
    order: &BuildRequest,
    config: &Config,
    events: &Events,
    supervisor: SupervisorClient,
) -> Fetcher {
    let observer = Arc::new(ToEvents(events.clone()));
    let registry = with_credentials(&order.registry, config, &order.images, Arc::new(supervisor), observer)
        .map_err(set_up);
    Fetcher { registry, images: order.images.clone() }
}

/// Returns the registries and repositories for which an order can need credentials: those of its images, and
/// of their mirrors.
///
/// # Errors
/// The configuration of a registry cannot be read.
pub fn repositories(order: &BuildRequest, config: &Config) -> Result<HashSet<(String, String)>, Error> {
    let hosts = hosts_of(&order.images, &order.registry, &config.registry)?;
    let mut found = HashSet::new();
    for image in &order.images {
        for tag in [false, true] {
            for name in hosts.credential_names(image.registry(), image.repository(), tag)? {
                found.insert((name, image.repository().to_owned()));
            }
        }
    }
    Ok(found)
}

/// Opens all sources of credentials of an order for `images`.
pub fn secrets(order: &RegistryOptions, images: &[ImageReference]) -> Secrets {
    let keyring = match &order.secrets_dir {
        Some(dir) => directory::read(dir, &order.pull_secrets),
        None => Keyring::default(),
    };
    let file = order.auth_file.clone().map(DockerConfig::at).into_iter();
    let named = file.chain(order.docker_configs.iter().map(|dir| DockerConfig::in_directory(dir)));
    let mut docker_configs: Vec<DockerConfig> = named.collect();
    if docker_configs.is_empty() && order.user_docker_config {
        docker_configs = DockerConfig::of_this_user();
    }
    let secrets = Secrets::new(keyring, docker_configs);
    match &order.credential {
        Some(credential) => {
            let registries = images.iter().map(|image| image.registry().to_owned()).collect();
            secrets.with_given(credential.clone(), registries)
        }
        None => secrets,
    }
}

/// Emits the totals of a registry client: its responses and the bytes of layers.
pub fn report_traffic(registry: &Registry, events: &Events) {
    for ((host, code), requests) in registry.answers() {
        events.emit(Event::RegistryAnswers { host, code, requests });
    }
    let (registries, mirrors) = registry.received();
    if registries > 0 || mirrors > 0 {
        events.emit(Event::Transferred { registries, mirrors });
    }
}

fn set_up(error: Error) -> Vec<Failure> {
    vec![Failure::job(error.class(), format!("setting up the registry client: {error}"))]
}

/// Returns the limits on layers.
pub(super) fn limits(config: &Config) -> Limits {
    let build = &config.build;
    Limits {
        max_entries: build.max_entries,
        max_logical_bytes: build.max_logical_size.0,
        ratio: Ratio { floor: build.ratio_floor.0, max: build.max_ratio },
        ..Limits::default()
    }
}

/// Returns the addresses that the client can connect to. The addresses of this host are listed here, because
/// a confined process cannot list them.
fn rules(reach: NetworkAccess, section: &section::Registry) -> Result<Rules, Error> {
    let own = match reach {
        NetworkAccess::Any => Vec::new(),
        NetworkAccess::Tenant => interfaces::addresses()
            .map_err(|e| Error::Setup(format!("cannot list the addresses of this host: {e}")))?,
    };
    Ok(Rules { reach, allow: section.allow.clone(), deny: section.deny.clone(), own })
}

fn options(order: &RegistryOptions, section: &section::Registry, memory: u64) -> Options {
    Options {
        connections_per_host: order.connections_per_host,
        limit_rate: order.limit_rate,
        timeouts: Timeouts {
            connect: Duration::from_secs(section.connect_timeout_seconds),
            read: Duration::from_secs(section.stall_timeout_seconds),
            exchange: Duration::from_secs(section.request_timeout_seconds),
        },
        retries: retries(order.retries, section),
        ranges: Ranges { parallel: section.ranges_per_blob, memory, ..Ranges::default() },
        min_rate: order.min_layer_rate.map(|rate| MinRate::per_minute(rate.0)),
        ..Options::default()
    }
}

/// Returns the limits for retries. A number given by a flag is also that for unreachable hosts.
fn retries(given: Option<u32>, section: &section::Registry) -> Retries {
    let all = given.unwrap_or(section.retries);
    let unreachable = given.unwrap_or(section.unreachable_retries);
    let duration = if unreachable < all { UNREACHABLE } else { Duration::MAX };
    Retries {
        attempts: all.saturating_add(1),
        unreachable: Unreachable { attempts: unreachable.saturating_add(1), duration },
        cap: Duration::from_secs(section.backoff_max_seconds),
        ..Retries::default()
    }
}

/// Returns the settings of the registries of `images`: those of the flags take precedence over those of the
/// configuration, and these over containerd's `certs.d`.
fn hosts_of(
    images: &[ImageReference],
    order: &RegistryOptions,
    section: &section::Registry,
) -> Result<Hosts, Error> {
    let mut hosts = hosts(section);
    let registries: BTreeSet<&str> = images.iter().map(ImageReference::registry).collect();
    hosts.load_certs_d(registries.iter().copied())?;
    if order.hosts != HostOverrides::default() {
        for registry in registries {
            add_overrides(hosts.registries.entry(registry.to_owned()).or_default(), registry, &order.hosts);
        }
    }
    Ok(hosts)
}

fn add_overrides(host: &mut Host, registry: &str, overrides: &HostOverrides) {
    let HostOverrides { tls_verify, ca, mirrors } = overrides;
    let mirrors = mirrors.iter().filter(|m| m.registry.as_deref().is_none_or(|name| name == registry));
    let mirrors = mirrors.map(|mirror| Mirror {
        server: Server { url: mirror.url.clone(), ..Server::default() },
        prefix: None,
        resolve: true,
    });
    host.mirrors.splice(..0, mirrors);
    let servers = host.mirrors.iter_mut().map(|mirror| &mut mirror.server).chain([&mut host.server]);
    for server in servers {
        server.tls.ca.extend(ca.iter().cloned());
        match tls_verify {
            Some(true) => (server.plain_http, server.tls.skip_verify) = (Some(false), false),
            // A server that is known to use plain HTTP keeps it.
            Some(false) => {
                server.plain_http = server.plain_http.filter(|is_plain| *is_plain);
                server.tls.skip_verify = true;
            }
            None => {}
        }
    }
}

/// Converts the configured hosts. Entries for a repository become mirrors of its registry for that prefix.
/// They come first, longest prefix first, so that the most specific mirror is tried before general ones.
fn hosts(section: &section::Registry) -> Hosts {
    let mut entries: Vec<&section::Host> = section.host.iter().collect();
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.name.matches('/').count()));
    let mut registries: BTreeMap<String, Host> = BTreeMap::new();
    for entry in entries {
        let (name, prefix) = match entry.name.split_once('/') {
            Some((name, prefix)) => (name, Some(prefix.trim_end_matches('/').to_owned())),
            None => (entry.name.as_str(), None),
        };
        let tls = Tls {
            ca: entry.ca.clone(),
            client: entry.client_cert.clone().zip(entry.client_key.clone()),
            skip_verify: false,
        };
        let host = registries.entry(name.to_owned()).or_default();
        host.mirrors.extend(entry.mirrors.iter().map(|url| Mirror {
            server: Server {
                url: url.clone(),
                plain_http: entry.plain_http,
                override_path: entry.override_path,
                tls: tls.clone(),
                headers: Vec::new(),
            },
            prefix: prefix.clone(),
            resolve: true,
        }));
        if prefix.is_none() {
            host.server.plain_http = entry.plain_http;
            host.server.tls = tls;
        }
    }
    Hosts { registries, certs_d: certs_d(&section.certs_d) }
}

fn certs_d(dir: &Path) -> Vec<std::path::PathBuf> {
    if dir.as_os_str().is_empty() { Vec::new() } else { vec![dir.to_owned()] }
}

#[derive(Debug)]
struct FromSecrets(Secrets);

impl Credentials for FromSecrets {
    fn lookup<'a>(
        &'a self,
        registry: &'a str,
        repository: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Credential>, CredentialsError>> {
        Box::pin(async move {
            let found = self.0.lookup(registry, repository).await;
            found.map_err(|e| CredentialsError { registry: registry.to_owned(), reason: e.to_string() })
        })
    }
}

struct ToEvents(Events);

impl Observer for ToEvents {
    fn retried(&self, retry: &Retry) {
        self.0.emit(Event::Retried {
            host: retry.host.clone(),
            what: retry.what.clone(),
            reason: retry.reason.clone(),
            wait_ms: milliseconds(retry.wait),
        });
    }

    fn replaced(&self, replacement: &Replacement) {
        let Replacement { host, what, rate, median } = replacement.clone();
        self.0.emit(Event::ConnectionReplaced { host, what, rate, median });
    }

    fn mirror_failed(&self, host: &str, reason: &str) {
        self.0
            .emit(Event::Warning { message: format!("mirror {host} failed, using the next host: {reason}") });
    }

    fn warned(&self, host: &str, words: &str) {
        self.0.emit(Event::Warning { message: format!("warning from {host}: {words}") });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_take_precedence() {
        let text = r#"
            [[registry.host]]
            name = "r.io"
            mirrors = ["old.io"]
            plain_http = false
            ca = ["/old.pem"]
        "#;
        let config = Config::parse(text, []).unwrap();
        let mirrors = vec!["new.io".parse().unwrap(), "other.io=not.io".parse().unwrap()];
        let overridden = |tls_verify| {
            let mut host = hosts(&config.registry).registries.remove("r.io").unwrap();
            let (ca, mirrors) = (vec!["/new.pem".into()], mirrors.clone());
            add_overrides(&mut host, "r.io", &HostOverrides { tls_verify, ca, mirrors });
            host
        };
        let host = overridden(Some(false));
        let mirrors: Vec<_> = host.mirrors.iter().map(|mirror| mirror.server.url.as_str()).collect();
        assert_eq!(mirrors, ["new.io", "old.io"]);
        assert_eq!(host.server.tls.ca, [Path::new("/old.pem"), Path::new("/new.pem")]);
        assert_eq!((host.server.plain_http, host.server.tls.skip_verify), (None, true));
        assert!(host.mirrors.iter().all(|mirror| mirror.server.tls.skip_verify));
        let host = overridden(Some(true));
        assert_eq!((host.server.plain_http, host.server.tls.skip_verify), (Some(false), false));
        assert_eq!(host.mirrors[0].server.plain_http, Some(false));
    }

    #[test]
    fn a_flag_and_the_builders_of_a_daemon_have_no_other_limit_for_unreachable_hosts() {
        let config = Config::default();
        let of = |retries: &Retries| (retries.attempts, retries.unreachable.attempts);
        let of_user = retries(None, &config.registry);
        assert_eq!((of(&of_user), of_user.unreachable.duration), ((9, 3), UNREACHABLE));
        for unlimited in [retries(Some(4), &config.registry), retries(None, &config.of_builders().registry)] {
            assert_eq!(unlimited.attempts, unlimited.unreachable.attempts);
            assert_eq!(unlimited.unreachable.duration, Duration::MAX);
        }
    }

    #[test]
    fn entries_of_one_registry_join() {
        let text = r#"
            [[registry.host]]
            name = "r.example.com"
            mirrors = ["https://all.example.com"]
            ca = ["/ca.pem"]
            [[registry.host]]
            name = "r.example.com/team"
            mirrors = ["near.example.com:5000"]
            plain_http = true
        "#;
        let config = Config::parse(text, []).unwrap();
        let hosts = hosts(&config.registry);
        let host = &hosts.registries["r.example.com"];
        let mirrors: Vec<_> = host
            .mirrors
            .iter()
            .map(|m| (m.server.url.as_str(), m.server.plain_http, m.prefix.as_deref()))
            .collect();
        let near = ("near.example.com:5000", Some(true), Some("team"));
        assert_eq!(mirrors, [near, ("https://all.example.com", None, None)]);
        assert_eq!(host.server.plain_http, None, "only the mirror of the prefix uses plain http");
        assert_eq!(host.server.tls.ca, [Path::new("/ca.pem")]);
    }
}
