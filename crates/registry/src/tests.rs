//! Tests of the client against a misbehaving registry.

mod absent;
mod access;
mod blobs;
mod network;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::*;
use larder_model::class::Class;
use larder_model::credential::Secret;
use larder_model::job::NetworkAccess;
use larder_testing::registry as fake;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Credentials from a list, which record each lookup.
#[derive(Debug, Default)]
struct Listed {
    all: Vec<Credential>,
    asked: Mutex<Vec<String>>,
}

impl Credentials for Listed {
    fn lookup<'a>(
        &'a self,
        registry: &'a str,
        repository: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Credential>, CredentialsError>> {
        self.asked.lock().unwrap().push(format!("{registry}/{repository}"));
        Box::pin(async { Ok(self.all.clone()) })
    }
}

#[derive(Default)]
struct Recorder(Mutex<Vec<Retry>>, Mutex<Vec<String>>, Mutex<Vec<Replacement>>);

impl Observer for Recorder {
    fn retried(&self, retry: &Retry) {
        self.0.lock().unwrap().push(retry.clone());
    }

    fn replaced(&self, replacement: &Replacement) {
        self.2.lock().unwrap().push(replacement.clone());
    }

    fn mirror_failed(&self, host: &str, reason: &str) {
        self.1.lock().unwrap().push(format!("{host}: {reason}"));
    }
}

fn user(name: &str, password: &str) -> Credential {
    Credential::Basic { username: name.into(), password: Secret::new(password) }
}

/// Options with waits of milliseconds.
fn fast() -> Options {
    Options {
        timeouts: Timeouts { read: Duration::from_millis(300), ..Timeouts::default() },
        retries: Retries { attempts: 4, base: Duration::from_millis(2), ..Retries::default() },
        ..Options::default()
    }
}

fn client(options: Options, all: Vec<Credential>) -> (Registry, Arc<Listed>, Arc<Recorder>) {
    let (credentials, recorder) =
        (Arc::new(Listed { all, ..Listed::default() }), Arc::new(Recorder::default()));
    let registry = Registry::new(options, credentials.clone(), recorder.clone()).unwrap();
    (registry, credentials, recorder)
}

fn image(server: &fake::Registry) -> ImageReference {
    format!("{}/team/app:1", server.host()).parse().unwrap()
}

fn descriptor(digest: &Digest, size: u64) -> Descriptor {
    Descriptor { media_type: String::new(), digest: digest.clone(), size, urls: vec![], platform: None }
}

fn noise(size: usize) -> Bytes {
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    };
    (0..size).map(|_| next()).collect()
}

async fn drain(mut stream: BlobStream) -> Result<Vec<u8>, Error> {
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await? {
        assert!(!chunk.is_empty());
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

#[tokio::test]
async fn manifests_by_tag_and_digest() {
    let server = fake::Registry::start().await;
    let digest = server.put_manifest("team/app", "1", MANIFEST, "{}");
    let (client, ..) = client(fast(), vec![]);
    for by in [ManifestReference::Tag("1"), ManifestReference::Digest(&digest)] {
        let manifest = client.manifest(&image(&server), by).await.unwrap();
        assert_eq!((&manifest.digest, &manifest.bytes[..]), (&digest, &b"{}"[..]));
        assert_eq!(manifest.media_type.as_deref(), Some(MANIFEST));
    }
}

#[tokio::test]
async fn hostile_manifests() {
    let server = fake::Registry::start().await;
    let digest = server.put_manifest("team/app", "1", MANIFEST, "{ }");
    let (client, ..) = client(fast(), vec![]);
    for fault in [fake::Fault::EndlessManifest, fake::Fault::WrongManifest] {
        server.heal();
        server.fault(fault);
        let failed = client.manifest(&image(&server), ManifestReference::Digest(&digest)).await.unwrap_err();
        assert_eq!(failed.class(), Class::Corrupt, "{failed}");
    }
}

#[tokio::test]
async fn what_statuses_mean() {
    for (status, times, class) in [
        (404, 1, Class::NotFound),
        (400, 1, Class::Invalid),
        (403, 9, Class::Denied),
        (408, 9, Class::Transient),
        (429, 9, Class::Transient),
        (500, 9, Class::Transient),
        (502, 9, Class::Transient),
        (503, 9, Class::Transient),
        (504, 9, Class::Transient),
    ] {
        let server = fake::Registry::start().await;
        server.put_manifest("team/app", "1", MANIFEST, "{}");
        server.fault(fake::Fault::Status { path: "manifests".into(), status, times, retry_after: None });
        let (client, ..) = client(fast(), vec![]);
        let failed = client.manifest(&image(&server), ManifestReference::Tag("1")).await.unwrap_err();
        assert_eq!(failed.class(), class, "{failed}");
        assert!(failed.to_string().contains("team/app:1"), "{failed}");
        let tries = if class == Class::Transient { 4 } else { 1 };
        assert_eq!(server.requests("manifests"), tries, "{status}");
    }
}

#[tokio::test]
async fn retry_after_is_honoured_and_reported() {
    let server = fake::Registry::start().await;
    server.put_manifest("team/app", "1", MANIFEST, "{}");
    let retry_after = Some("1".to_owned());
    server.fault(fake::Fault::Status { path: "manifests".into(), status: 429, times: 1, retry_after });
    let (client, _, recorder) = client(fast(), vec![]);
    let start = std::time::Instant::now();
    client.manifest(&image(&server), ManifestReference::Tag("1")).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
    let retries = recorder.0.lock().unwrap();
    assert_eq!(retries.len(), 1);
    assert_eq!(retries[0].host, server.host());
    assert!(retries[0].reason.contains("429"), "{:?}", retries[0]);
}

#[tokio::test]
async fn mirrors_first_then_the_upstream() {
    let (mirror, upstream) = (fake::Registry::start().await, fake::Registry::start().await);
    upstream.put_manifest("team/app", "1", MANIFEST, "{}");
    let bytes = noise(100_000);
    let digest = upstream.put_blob(bytes.clone());
    let server = hosts::Server { url: format!("http://{}", mirror.host()), ..hosts::Server::default() };
    let host = hosts::Host {
        mirrors: vec![hosts::Mirror { server, prefix: None, resolve: true }],
        ..hosts::Host::default()
    };
    let mut options = fast();
    options.hosts.registries.insert(upstream.host(), host);
    let (client, ..) = client(options, vec![]);
    // The mirror has nothing, so the upstream serves.
    client.manifest(&image(&upstream), ManifestReference::Tag("1")).await.unwrap();
    let wanted = descriptor(&digest, 100_000);
    assert_eq!(drain(client.blob(&image(&upstream), &wanted, 0)).await.unwrap(), bytes);
    assert_eq!(mirror.requests("team/app"), 2);
    assert_eq!(
        mirror.seen()[0].query.as_deref(),
        Some(format!("ns={}", upstream.host().replace(':', "%3A")).as_str())
    );
    // The mirror has the blob but fails in the middle: the upstream continues from there.
    mirror.put_blob(bytes.clone());
    let offsets = vec![40_000, 40_001];
    mirror.fault(fake::Fault::DropAt { digest: digest.clone(), offsets });
    mirror.fault(fake::Fault::RangeRefused { times: 9 });
    upstream.forget();
    assert_eq!(drain(client.blob(&image(&upstream), &wanted, 0)).await.unwrap(), bytes);
    assert_eq!(upstream.served(&digest) + 40_000, 100_000);
    let (registries, mirrors) = client.received();
    assert_eq!(registries, 100_000 + 60_000);
    assert!((40_000..100_000).contains(&mirrors), "{mirrors}");
}

#[tokio::test]
async fn each_failed_mirror_is_reported_once_and_listed_in_the_error() {
    let upstream = fake::Registry::start().await;
    let mirrors = [fake::Registry::start().await, fake::Registry::start().await];
    mirrors[0].fault(fake::Fault::Status { path: "v2".into(), status: 400, times: 9, retry_after: None });
    let mut options = fast();
    let host = options.hosts.registries.entry(upstream.host()).or_default();
    host.mirrors = mirrors
        .iter()
        .map(|mirror| hosts::Mirror {
            server: hosts::Server { url: format!("http://{}", mirror.host()), ..hosts::Server::default() },
            prefix: None,
            resolve: true,
        })
        .collect();
    let (client, _, recorder) = client(options, vec![]);
    for _ in 0..2 {
        let failed = client.manifest(&image(&upstream), ManifestReference::Tag("1")).await.unwrap_err();
        assert_eq!(failed.class(), Class::NotFound, "the registry decides: {failed}");
        let Error::Request { host, tried, .. } = &failed else { panic!("{failed}") };
        assert_eq!(*host, upstream.host());
        let tried: Vec<&str> = tried.iter().map(|mirror| &*mirror.host).collect();
        assert_eq!(tried, [mirrors[0].host(), mirrors[1].host()]);
        assert!(failed.to_string().contains(&format!("; mirror {}: 400", mirrors[0].host())), "{failed}");
    }
    // The second mirror works, and has no such image.
    let reports = recorder.1.lock().unwrap();
    assert!(reports.len() == 1 && reports[0].starts_with(&mirrors[0].host()), "{reports:?}");
}

#[tokio::test]
async fn the_rate_is_limited() {
    let server = fake::Registry::start().await;
    let digest = server.put_blob(noise(300_000));
    let (client, ..) = client(Options { limit_rate: Some(200_000), ..fast() }, vec![]);
    let start = std::time::Instant::now();
    drain(client.blob(&image(&server), &descriptor(&digest, 300_000), 0)).await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(450));
}
