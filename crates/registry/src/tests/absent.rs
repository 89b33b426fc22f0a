//! Registries that cannot be reached, and tags that do not exist.

use std::net::TcpListener;
use std::time::Instant;

use super::*;

const UNREACHABLE: Unreachable = Unreachable { attempts: 3, duration: Duration::from_secs(120) };

fn impatient() -> Options {
    let fast = fast();
    let timeouts = Timeouts { connect: Duration::from_millis(300), ..fast.timeouts };
    Options { retries: Retries { attempts: 9, unreachable: UNREACHABLE, ..fast.retries }, timeouts, ..fast }
}

/// Fetches the manifest of an image that cannot be read. Returns the error and the number of retries.
async fn failed(options: Options, image: &str) -> (Error, usize) {
    let (client, _, recorder) = client(options, vec![]);
    let error = client.manifest(&image.parse().unwrap(), ManifestReference::Tag("1")).await.unwrap_err();
    (error, recorder.0.lock().unwrap().len())
}

#[tokio::test]
async fn a_refused_connection_is_tried_three_times() {
    let image = "127.0.0.1:1/a:1";
    let started = Instant::now();
    let (error, retries) = failed(impatient(), image).await;
    assert_eq!((error.class(), retries), (Class::Transient, 2), "{error}");
    assert!(error.to_string().contains("check the name of the registry"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(5));
    let (error, retries) = failed(Options { retries: fast().retries, ..impatient() }, image).await;
    assert_eq!(retries, 3, "without other limits: {error}");
}

#[tokio::test]
async fn a_server_that_never_answers_is_tried_three_times() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let image = format!("{}/a:1", silent.local_addr().unwrap());
    let (error, retries) = failed(impatient(), &image).await;
    assert_eq!((error.class(), retries), (Class::Transient, 2), "{error}");
    // The second attempt is expected to exceed the limit.
    let unreachable = Unreachable { duration: Duration::from_millis(700), ..UNREACHABLE };
    let retries = Retries { unreachable, ..impatient().retries };
    let (_, retries) = failed(Options { retries, ..impatient() }, &image).await;
    assert_eq!(retries, 0);
}

#[tokio::test]
async fn an_unknown_host_is_tried_three_times_at_most() {
    let (error, retries) = failed(impatient(), "larder.invalid/a:1").await;
    // Depending on the resolver, the host does not exist, or the lookup fails.
    assert!(matches!(error.class(), Class::NotFound | Class::Transient), "{error}");
    assert!(retries <= 2 && error.to_string().contains("check the name of the registry"), "{error}");
}

#[tokio::test]
async fn a_registry_that_has_answered_gets_all_attempts() {
    let server = fake::Registry::start().await;
    server.put_manifest("team/app", "1", MANIFEST, "{}");
    let (client, _, recorder) = client(impatient(), vec![]);
    let image = image(&server);
    client.manifest(&image, ManifestReference::Tag("1")).await.unwrap();
    drop(server);
    let digest = Digest::sha256(b"x");
    client.manifest(&image, ManifestReference::Digest(&digest)).await.unwrap_err();
    assert_eq!(recorder.0.lock().unwrap().len(), 8);
}

#[tokio::test]
async fn similar_tags_are_named() {
    let server = fake::Registry::start().await;
    for tag in ["1.27.1", "1.27.2", "1.26.0", "1.27.3", "latest", "windows"] {
        server.put_manifest("team/app", tag, MANIFEST, "{}");
    }
    let (client, ..) = client(fast(), vec![]);
    let error = client.manifest(&image(&server), ManifestReference::Tag("1.27.9")).await.unwrap_err();
    assert_eq!(error.class(), Class::NotFound);
    let hint = "did you mean one of the tags 1.27.1, 1.27.2 and 1.27.3?";
    assert_eq!(error.explanation().hint.as_deref(), Some(hint));
    assert!(error.to_string().ends_with(hint), "{error}");
    assert_eq!(server.requests("tags/list"), 1);
    assert_eq!(server.seen().last().unwrap().query.as_deref(), Some("n=1000"));

    let error = client.manifest(&image(&server), ManifestReference::Tag("latst")).await.unwrap_err();
    assert_eq!(error.explanation().hint.as_deref(), Some("did you mean the tag latest?"));
    // Without a similar tag, and for a digest, the hint is general.
    let digest = Digest::sha256(b"x");
    for by in [ManifestReference::Tag("zzz"), ManifestReference::Digest(&digest)] {
        let error = client.manifest(&image(&server), by).await.unwrap_err();
        assert!(error.explanation().hint.unwrap().starts_with("check the name, the tag"), "{error}");
    }
    assert_eq!(server.requests("tags/list"), 3);
}

#[tokio::test]
async fn a_list_of_tags_delays_the_error_by_two_seconds_at_most() {
    let server = fake::Registry::start().await;
    server.put_manifest("team/app", "1.27.1", MANIFEST, "{}");
    let (client, ..) = client(Options { timeouts: Timeouts::default(), ..fast() }, vec![]);
    let missing = ManifestReference::Tag("1.27.2");
    for fault in [
        fake::Fault::DribbleTags,
        fake::Fault::Status { path: "tags/list".into(), status: 503, times: 9, retry_after: None },
    ] {
        server.heal();
        server.fault(fault);
        let started = Instant::now();
        let error = client.manifest(&image(&server), missing).await.unwrap_err();
        assert_eq!(error.class(), Class::NotFound);
        assert!(error.explanation().hint.unwrap().starts_with("check the name, the tag"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(4));
    }
    assert_eq!(server.requests("tags/list"), 2, "the request is not retried");
}
