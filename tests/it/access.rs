//! Access checks when a cache of private images is attached: the registries decide, with the credentials of
//! the caller.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use larder::builder::order::{HostOverrides, RegistryOptions};
use larder::config::Config;
use larder::config::registry::Host;
use larder::node::access::{AccessError, Policy, Refusal, check_blocking};
use larder_model::class::Class;
use larder_model::job::NetworkAccess;
use larder_model::seal::{CacheManifest, Content};
use larder_testing::image::{Format, Image, Layer, push_index};
use larder_testing::layer::LayerBuilder;
use larder_testing::registry::{self as bad, Fault};
use serde_json::json;
use tempfile::TempDir;

use crate::harness::registry::{PASSWORD, Registry, USER, basic};
use crate::harness::served::cache;
use crate::harness::{Need, isolated, larder, succeed};

const NEEDS: &[Need] =
    &[Need::Program("docker-registry"), Need::Program("htpasswd"), Need::Program("openssl")];
const WRONG: &str = "wrong:password";

fn image(content: &str) -> Image {
    let layer = Layer::from(LayerBuilder::new().file("etc/motd", content).gzip());
    Image::builder(Format::Oci).layer(layer).build()
}

/// Builds `images` with the credentials in `docker_config`. Returns the content of `cache.json`.
fn build(dir: &Path, images: &[&str], docker_config: &Path) -> Content {
    let mut larder = larder();
    larder.arg("build").arg("--volume").arg(dir).args(["--size", "64MiB", "--sizing", "warn"]);
    succeed(larder.arg("--docker-config").arg(docker_config).args(images));
    cache(dir).content
}

/// Registry options without credentials.
fn no_credentials() -> RegistryOptions {
    RegistryOptions {
        connections_per_host: 4,
        limit_rate: None,
        auth_file: None,
        credential: None,
        retries: None,
        docker_configs: Vec::new(),
        user_docker_config: false,
        secrets_dir: None,
        pull_secrets: Vec::new(),
        reach: NetworkAccess::Any,
        min_layer_rate: None,
        hosts: HostOverrides::default(),
    }
}

fn with(docker_config: PathBuf) -> RegistryOptions {
    RegistryOptions { docker_configs: vec![docker_config], ..no_credentials() }
}

fn wrong(dir: &Path, host: &str) -> RegistryOptions {
    let auth = BASE64_STANDARD.encode(format!("{USER}:{WRONG}"));
    fs::write(dir.join("config.json"), json!({"auths": {host: {"auth": auth}}}).to_string()).unwrap();
    with(dir.to_owned())
}

/// A configuration without retries and without this machine's own `certs.d`.
fn config() -> Config {
    let mut config = Config::default();
    config.registry.retries = 1;
    config.registry.backoff_max_seconds = 1;
    config.registry.connect_timeout_seconds = 2;
    config.registry.certs_d = PathBuf::new();
    config
}

fn verify(content: &Content, order: &RegistryOptions, config: &Config) -> Result<(), AccessError> {
    let checked = check_blocking(Policy::Verify, content, order, config);
    if let Err(error) = &checked {
        for secret in [PASSWORD, WRONG, &basic()["Basic ".len()..]] {
            assert!(!format!("{error} {error:?}").contains(secret), "{error}");
        }
    }
    checked
}

fn refused(content: &Content, order: &RegistryOptions, config: &Config) -> (Class, Vec<Refusal>, String) {
    let error = verify(content, order, config).expect_err("these credentials cannot read the images");
    let (class, text) = (error.class(), error.to_string());
    match error {
        AccessError::Refused(refused) => (class, refused.images, text),
        other => panic!("{other}"),
    }
}

#[case]
fn only_who_may_read_the_images_attaches_them() {
    isolated(NEEDS, || {
        let dir = tempfile::tempdir().unwrap();
        let open = Registry::open();
        let public = open.push(&image("public"), "team/public", "1");
        for (name, registry) in
            [("basic", Registry::with_password()), ("token", Registry::with_tokens(Duration::from_secs(60)))]
        {
            let private = registry.push(&image("private"), "team/private", "1");
            let again = registry.push(&image("private"), "team/private", "2");
            let images = [public.as_str(), &private, &again];
            let content = build(&dir.path().join(name), &images, &registry.docker_config());

            verify(&content, &with(registry.docker_config()), &config()).unwrap();

            let (class, images, text) = refused(&content, &no_credentials(), &config());
            assert_eq!(class, Class::Denied, "{text}");
            let named: Vec<&str> = images.iter().map(|refusal| refusal.image.as_str()).collect();
            assert_eq!(
                named,
                [&private, &again],
                "every reference to it must be named, but not the public one"
            );
            assert!(text.starts_with("2 of 3 images") && text.contains(&registry.host()), "{text}");
            assert!(
                text.contains("provide a pull secret, or credentials with --authfile or --creds"),
                "{text}"
            );

            let wrong = wrong(dir.path(), &registry.host());
            let (class, _, text) = refused(&content, &wrong, &config());
            assert_eq!(class, Class::Denied, "{text}");
            assert!(text.contains("refused; check the credentials"), "{text}");

            check_blocking(Policy::Any, &content, &no_credentials(), &config()).unwrap();
        }
    });
}

#[case]
fn pull_secrets_are_credentials_and_absent_ones_are_named() {
    isolated(NEEDS, || {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::with_password();
        let reference = registry.push(&image("private"), "team/private", "1");
        let content = build(&dir.path().join("volume"), &[&reference], &registry.docker_config());
        let secret = dir.path().join("secrets/team-a/registry");
        fs::create_dir_all(&secret).unwrap();
        fs::copy(registry.docker_config().join("config.json"), secret.join(".dockerconfigjson")).unwrap();
        let secrets = |name: &str| RegistryOptions {
            secrets_dir: Some(dir.path().join("secrets")),
            pull_secrets: vec![name.parse().unwrap()],
            ..no_credentials()
        };
        verify(&content, &secrets("team-a:registry"), &config()).unwrap();
        let (class, _, text) = refused(&content, &secrets("team-b:registry"), &config());
        assert_eq!(class, Class::Denied);
        assert!(text.contains("team-b:registry"), "{text}");
    });
}

#[case]
fn an_image_missing_from_its_registry_is_refused() {
    isolated(NEEDS, || {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open();
        let host = registry.host();
        let host_platform = image("indexed");
        let mut client = registry.client("team/indexed");
        let index =
            push_index(&mut client, Format::Oci, &[&host_platform], "team/indexed", "1").unwrap().digest;
        let (indexed, plain) =
            (format!("{host}/team/indexed:1"), registry.push(&image("plain"), "team/plain", "1"));
        let content = build(&dir.path().join("volume"), &[&indexed, &plain], &registry.docker_config());
        assert_eq!(content.images[0].index.as_ref(), Some(&index));
        verify(&content, &no_credentials(), &config()).unwrap();

        registry.delete("team/indexed", &index);
        let (class, images, text) = refused(&content, &no_credentials(), &config());
        assert_eq!((class, images.len()), (Class::Denied, 1), "{text}");
        assert!(images[0].image == indexed && text.contains(&index.to_string()), "{text}");
        assert!(text.contains("not found (404") && text.contains("build the cache again"), "{text}");

        registry.delete("team/plain", &content.images[1].manifest);
        let (_, images, text) = refused(&content, &no_credentials(), &config());
        assert_eq!(images.len(), 2, "{text}");

        registry.stop();
        let (class, images, text) = refused(&content, &no_credentials(), &config());
        assert_eq!((class, images.len()), (Class::Transient, 2), "{text}");
        assert!(text.contains("try again later"), "{text}");
    });
}

/// Builds a volume of one image from a registry with a password. Returns its registry as well.
fn private(dir: &TempDir) -> (Registry, Image, Content) {
    let registry = Registry::with_password();
    let image = image("private");
    let reference = registry.push(&image, "team/private", "1");
    let content = build(&dir.path().join("volume"), &[&reference], &registry.docker_config());
    (registry, image, content)
}

#[case]
fn no_mirror_answers_for_a_registry() {
    isolated(NEEDS, || {
        let dir = tempfile::tempdir().unwrap();
        let (registry, image, content) = private(&dir);
        let mut mirror = bad::Registry::spawn();
        image.push(&mut mirror, "team/private", "1").unwrap();
        let mut mirrored = config();
        mirrored.registry.host = vec![Host {
            name: registry.host(),
            mirrors: vec![format!("http://{}", mirror.host())],
            plain_http: Some(true),
            ..Host::default()
        }];
        // A build can use content that the mirror serves to everyone.
        let toml = dir.path().join("larder.toml");
        let host = registry.host();
        let text = format!("registry.host = [{{ name = '{host}', mirrors = ['http://{}'] }}]", mirror.host());
        fs::write(&toml, text).unwrap();
        let mut plan = larder();
        succeed(plan.arg("plan").arg("--config").arg(&toml).arg(&content.images[0].reference));
        assert!(mirror.requests("/manifests/") > 0);

        mirror.forget();
        let (class, _, text) = refused(&content, &no_credentials(), &mirrored);
        assert_eq!(class, Class::Denied, "{text}");
        verify(&content, &with(registry.docker_config()), &mirrored).unwrap();
        assert_eq!(mirror.requests(""), 0, "the mirror received a request");
    });
}

#[case]
fn credentials_of_the_node_are_not_those_of_the_caller() {
    isolated(NEEDS, || {
        let dir = tempfile::tempdir().unwrap();
        let (registry, _, content) = private(&dir);
        let certs_d = dir.path().join("certs.d");
        let of_host = certs_d.join(registry.host());
        fs::create_dir_all(&of_host).unwrap();
        let text =
            format!("server = 'http://{}'\n[header]\nauthorization = '{}'\n", registry.host(), basic());
        fs::write(of_host.join("hosts.toml"), text).unwrap();
        let toml = dir.path().join("larder.toml");
        fs::write(&toml, format!("registry.certs_d = '{}'", certs_d.display())).unwrap();
        let mut plan = larder();
        succeed(plan.arg("plan").arg("--config").arg(&toml).arg(&content.images[0].reference));

        let config = Config {
            registry: larder::config::registry::Registry { certs_d, ..config().registry },
            ..config()
        };
        let (class, _, text) = refused(&content, &no_credentials(), &config);
        assert_eq!(class, Class::Denied, "{text}");
        verify(&content, &with(registry.docker_config()), &config).unwrap();
    });
}

#[case]
fn transient_errors_are_retried_and_false_manifests_rejected() {
    isolated(NEEDS, || {
        let dir = tempfile::tempdir().unwrap();
        let mut registry = bad::Registry::spawn();
        image("one").push(&mut registry, "team/one", "1").unwrap();
        image("two").push(&mut registry, "team/two", "1").unwrap();
        let images = ["one", "two"].map(|name| format!("{}/team/{name}:1", registry.host()));
        let content = build(&dir.path().join("volume"), &[&images[0], &images[1]], dir.path());
        let busy = |times| Fault::Status {
            path: "team/one/manifests".into(),
            status: 503,
            times,
            retry_after: None,
        };

        registry.fault(busy(1));
        verify(&content, &no_credentials(), &config()).unwrap();
        registry.fault(busy(1000));
        let (class, refusals, text) = refused(&content, &no_credentials(), &config());
        assert_eq!((class, refusals.len()), (Class::Transient, 1), "{text}");
        assert_eq!(refusals[0].image, images[0]);

        // A denial is the final result, because a retry cannot change it.
        let forbidden =
            Fault::Status { path: "team/two/manifests".into(), status: 403, times: 1000, retry_after: None };
        registry.fault(forbidden);
        let (class, refusals, text) = refused(&content, &no_credentials(), &config());
        assert_eq!((class, refusals.len()), (Class::Denied, 2), "{text}");
        let (denied, transient) = (text.find("access denied").unwrap(), text.find("503 Service").unwrap());
        assert!(denied < transient, "the deciding error must be first: {text}");

        registry.heal();
        registry.fault(Fault::WrongManifest);
        let (class, _, text) = refused(&content, &no_credentials(), &config());
        assert_eq!(class, Class::Corrupt, "{text}");
    });
}

#[case]
fn a_volume_that_calls_an_image_by_two_names_is_not_asked_about() {
    isolated(NEEDS, || {
        let dir = tempfile::tempdir().unwrap();
        let mut registry = bad::Registry::spawn();
        image("one").push(&mut registry, "team/one", "1").unwrap();
        let reference = format!("{}/team/one:1", registry.host());
        let content = build(&dir.path().join("volume"), &[&reference], dir.path());
        registry.forget();
        let change = |change: &dyn Fn(&mut Content)| {
            let mut changed = content.clone();
            change(&mut changed);
            // The digest matches, as an attacker would make it.
            CacheManifest::new(changed).unwrap().content
        };
        for lie in [
            change(&|content| content.images[0].name = "docker.io/library/nginx:1".into()),
            change(&|content| content.images[0].reference = "\x1b[2J".into()),
        ] {
            let error = verify(&lie, &no_credentials(), &config()).unwrap_err();
            assert_eq!(error.class(), Class::Corrupt, "{error}");
        }
        assert_eq!(registry.requests(""), 0);
    });
}
