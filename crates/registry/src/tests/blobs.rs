//! Blobs over failing connections.

use super::*;

const SIZE: u64 = 1 << 20;
const LENGTH: usize = 1 << 20;

async fn blob_under(
    faults: Vec<fake::Fault>,
    options: Options,
) -> (Result<bool, Error>, fake::Registry, Digest) {
    let server = fake::Registry::start().await;
    let bytes = noise(LENGTH);
    let digest = server.put_blob(bytes.clone());
    for fault in faults {
        server.fault(fault);
    }
    let (client, ..) = client(options, vec![]);
    let got = drain(client.blob(&image(&server), &descriptor(&digest, SIZE), 0)).await;
    (got.map(|got| got == bytes), server, digest)
}

fn of_noise() -> Digest {
    Digest::sha256(&noise(LENGTH))
}

#[tokio::test]
async fn two_hundred_cuts_cost_under_one_percent() {
    let offsets: Vec<u64> = (1..=200).map(|n| n * (SIZE / 201)).collect();
    let fault = fake::Fault::DropAt { digest: of_noise(), offsets };
    let (got, server, digest) = blob_under(vec![fault], fast()).await;
    assert!(got.unwrap());
    assert_eq!(server.requests("blobs"), 201);
    let extra = server.served(&digest) - SIZE;
    assert!(extra * 100 < SIZE, "{extra} bytes more than {SIZE}");
}

#[tokio::test]
async fn the_bytes_are_right_however_ranges_fail() {
    let cut = || fake::Fault::DropAt { digest: of_noise(), offsets: vec![300_000, 700_000] };
    let wrong = |value: &str, times| fake::Fault::WrongContentRange { value: value.into(), times };
    for (name, fault) in [
        ("none", None),
        ("ignored", Some(fake::Fault::IgnoreRange)),
        ("refused", Some(fake::Fault::RangeRefused { times: 1 })),
        ("wrong start", Some(wrong("bytes 0-9/10", 1))),
        ("wrong total", Some(wrong("bytes 300000-1048575/9999999", 1))),
        ("malformed", Some(wrong("bytes", 1))),
        ("stalled", Some(fake::Fault::StallAt { digest: of_noise(), offsets: vec![500_000] })),
    ] {
        let faults = [cut()].into_iter().chain(fault).collect();
        let (got, ..) = blob_under(faults, fast()).await;
        assert!(got.unwrap_or_else(|e| panic!("{name}: {e}")), "{name}");
    }
}

#[tokio::test]
async fn wrong_lengths_and_codings_are_corrupt() {
    for fault in
        [fake::Fault::Length(1), fake::Fault::Length(70_000), fake::Fault::ContentEncoding("gzip".into())]
    {
        let (got, ..) = blob_under(vec![fault.clone()], fast()).await;
        let failed = got.unwrap_err();
        assert_eq!(failed.class(), Class::Corrupt, "{fault:?}: {failed}");
    }
    let (got, ..) = blob_under(vec![fake::Fault::Length(-10)], fast()).await;
    assert_eq!(got.unwrap_err().class(), Class::Transient);
}

#[tokio::test]
async fn codings_that_change_no_byte_are_ignored() {
    for coding in ["aws-chunked", "none", "binary", "UTF-8", "identity", "Identity, aws-chunked", ""] {
        let (got, ..) = blob_under(vec![fake::Fault::ContentEncoding(coding.into())], fast()).await;
        assert!(got.unwrap_or_else(|e| panic!("{coding}: {e}")), "{coding}");
    }
    for coding in ["GZIP", "aws-chunked, gzip", "x-gzip", "br", "zstd", "deflate"] {
        let (got, ..) = blob_under(vec![fake::Fault::ContentEncoding(coding.into())], fast()).await;
        let failed = got.unwrap_err();
        assert!(failed.class() == Class::Corrupt && failed.to_string().contains(coding), "{failed}");
    }
}

#[tokio::test]
async fn a_descriptor_of_another_size_is_corrupt() {
    let server = fake::Registry::start().await;
    let digest = server.put_blob(noise(1000));
    let (client, ..) = client(fast(), vec![]);
    for size in [999, 1001] {
        let failed = drain(client.blob(&image(&server), &descriptor(&digest, size), 0)).await.unwrap_err();
        assert_eq!(failed.class(), Class::Corrupt, "{failed}");
        let failed = client.blob_bytes(&image(&server), &descriptor(&digest, size), 4096).await.unwrap_err();
        assert_eq!(failed.class(), Class::Corrupt, "{failed}");
    }
    assert!(client.blob_bytes(&image(&server), &descriptor(&digest, 1000), 4096).await.is_ok());
    assert!(client.blob_bytes(&image(&server), &descriptor(&digest, 1000), 999).await.is_err());
}

#[tokio::test]
async fn a_server_without_progress_fails() {
    let offsets = vec![1000; 50];
    let (got, server, _) =
        blob_under(vec![fake::Fault::StallAt { digest: of_noise(), offsets }], fast()).await;
    let failed = got.unwrap_err();
    assert_eq!(failed.class(), Class::Transient, "{failed}");
    assert_eq!(server.requests("blobs"), 4);
}

#[tokio::test]
async fn foreign_locations_only_over_https_and_only_after_404() {
    let (server, foreign) = (fake::Registry::start().await, fake::Registry::start().await);
    let digest = foreign.put_blob(noise(1000));
    let (client, ..) = client(fast(), vec![]);
    let port = foreign.host().rsplit(':').next().unwrap().to_owned();
    for url in
        [format!("http://{}/v2/x/blobs/{digest}", foreign.host()), format!("https://localhost:{port}/x")]
    {
        let mut wanted = descriptor(&digest, 1000);
        wanted.urls = vec![url];
        let failed = drain(client.blob(&image(&server), &wanted, 0)).await.unwrap_err();
        assert!(failed.to_string().contains("refused"), "{failed}");
    }
    assert!(foreign.seen().is_empty());
}

#[tokio::test]
async fn a_layer_that_is_too_slow_fails() {
    let (server, mirror) = (fake::Registry::start().await, fake::Registry::start().await);
    let bytes = noise(300_000);
    let digest = server.put_blob(bytes.clone());
    mirror.put_blob(bytes.clone());
    let every = Duration::from_millis(20);
    let dribble = fake::Fault::Dribble { digest: digest.clone(), bytes: 50, every };
    let least = MinRate { bytes: 10_000, window: Duration::from_millis(400) };
    let options = || Options { min_rate: Some(least), ..fast() };

    server.fault(dribble.clone());
    let (slow, _, recorder) = client(options(), vec![]);
    let failed = drain(slow.blob(&image(&server), &descriptor(&digest, 300_000), 0)).await.unwrap_err();
    assert_eq!(failed.class(), Class::Transient, "{failed}");
    assert!(failed.to_string().contains("too slow"), "{failed}");
    assert_eq!((server.requests("blobs"), recorder.0.lock().unwrap().len()), (1, 0), "a retry is pointless");

    // A slow mirror is replaced by the registry.
    server.heal();
    mirror.fault(dribble);
    let mut mirrored = options();
    let near = hosts::Server { url: format!("http://{}", mirror.host()), ..hosts::Server::default() };
    let near = hosts::Mirror { server: near, prefix: None, resolve: false };
    let host = hosts::Host { mirrors: vec![near], ..hosts::Host::default() };
    mirrored.hosts.registries.insert(server.host(), host);
    let (mirrored, ..) = client(mirrored, vec![]);
    assert_eq!(drain(mirrored.blob(&image(&server), &descriptor(&digest, 300_000), 0)).await.unwrap(), bytes);
    assert!(mirror.served(&digest) > 0);

    // A slow disk is not the registry's fault.
    let (patient, ..) = client(options(), vec![]);
    let mut stream = patient.blob(&image(&server), &descriptor(&digest, 300_000), 0);
    let mut read = 0;
    while let Some(chunk) = stream.next().await.unwrap() {
        read += chunk.len();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(read, 300_000);
}

#[tokio::test]
async fn a_manifest_that_is_too_slow_fails() {
    let server = fake::Registry::start().await;
    server.put_manifest("team/app", "1", MANIFEST, " ".repeat(1000));
    server.fault(fake::Fault::DribbleManifests(Duration::from_millis(20)));
    let mut options = fast();
    (options.timeouts.exchange, options.retries.attempts) = (Duration::from_millis(300), 2);
    let (client, _, recorder) = client(options, vec![]);
    let failed = client.manifest(&image(&server), ManifestReference::Tag("1")).await.unwrap_err();
    assert_eq!(failed.class(), Class::Transient, "{failed}");
    assert!(failed.to_string().contains("not complete"), "{failed}");
    assert_eq!(recorder.0.lock().unwrap().len(), 1);
}
