//! Blobs over networks that are slow in parts. The times are bounds for a broken client: the slow connections
//! alone would take minutes.

use super::*;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 24 * MIB;
const LENGTH: usize = 24 << 20;
const FAST: u64 = 100_000_000;
const SLOW: u64 = 100_000;

fn options(memory: u64) -> Options {
    let ranges = Ranges { parallel: 8, min_size: MIB, memory };
    Options { ranges, timeouts: Timeouts::default(), ..fast() }
}

/// Serves every connection at `rate` bytes per second.
fn equally(rate: u64) -> fake::Fault {
    fake::Fault::SlowConnections { every: 1, slow: rate, rate }
}

/// Returns hosts with mirrors for `upstream`.
fn mirrored(upstream: &fake::Registry, mirrors: &[&fake::Registry]) -> Hosts {
    let mirror = |server: &&fake::Registry| hosts::Mirror {
        server: hosts::Server { url: format!("http://{}", server.host()), ..hosts::Server::default() },
        prefix: None,
        resolve: true,
    };
    let host = hosts::Host { mirrors: mirrors.iter().map(mirror).collect(), ..hosts::Host::default() };
    Hosts { registries: [(upstream.host(), host)].into(), ..Hosts::default() }
}

/// Fetches a blob from `server`.
async fn fetch(server: &fake::Registry, options: Options, bytes: &Bytes) -> (Digest, Arc<Recorder>) {
    let digest = server.put_blob(bytes.clone());
    let (client, _, recorder) = client(options, vec![]);
    let stream = client.blob(&image(server), &descriptor(&digest, bytes.len() as u64), 0);
    let got = tokio::time::timeout(Duration::from_secs(60), drain(stream)).await;
    assert!(got.expect("the slow connections are replaced").unwrap() == *bytes, "the bytes are wrong");
    (digest, recorder)
}

#[tokio::test]
async fn slow_connections_are_replaced_and_resume() {
    let bytes = noise(LENGTH);
    for every in [2, 4] {
        let server = fake::Registry::start().await;
        // The first connection is slow as well.
        server.fault(fake::Fault::SlowConnections { every, slow: SLOW, rate: FAST });
        let (digest, recorder) = fetch(&server, options(32 * MIB), &bytes).await;
        let replaced = recorder.2.lock().unwrap();
        assert!(!replaced.is_empty(), "{every}");
        assert!(replaced.iter().all(|r| r.rate * 4 < r.median && r.host == server.host()), "{replaced:?}");
        let extra = server.served(&digest) - SIZE;
        assert!(extra <= 8 * MIB, "{extra} bytes were fetched twice");
    }
}

#[tokio::test]
async fn more_connections_are_used_while_they_help() {
    let server = fake::Registry::start().await;
    server.fault(equally(8_000_000));
    let (_, recorder) = fetch(&server, options(32 * MIB), &noise(LENGTH)).await;
    assert!(server.connections() > 2, "{}", server.connections());
    assert!(recorder.2.lock().unwrap().is_empty(), "no connection is slower than the others");
}

#[tokio::test]
async fn a_registry_that_slows_down_busy_clients_gets_few_requests() {
    let server = fake::Registry::start().await;
    server.fault(fake::Fault::Congested { rate: 20_000_000 });
    fetch(&server, options(32 * MIB), &noise(LENGTH)).await;
    // With 8 connections, there would be 24 parts of a MiB. A trial with more connections ends, but a busy
    // machine can make its result look good.
    let requests = server.requests("blobs");
    assert!(requests < 20, "{requests}");
}

#[tokio::test]
async fn a_blob_without_ranges_is_one_stream() {
    let server = fake::Registry::start().await;
    let bytes = noise(LENGTH);
    let digest = Digest::sha256(&bytes);
    server.fault(fake::Fault::IgnoreRangeOf(digest));
    server.fault(equally(20_000_000));
    let (digest, _) = fetch(&server, options(32 * MIB), &bytes).await;
    assert_eq!(server.requests("blobs"), 2, "one stream, and one attempt at a range");
    let extra = server.served(&digest) - SIZE;
    assert!(extra <= 8 * MIB, "{extra} bytes were fetched twice");
}

#[tokio::test]
async fn a_mirror_that_becomes_slow_is_left() {
    let (mirror, upstream) = (fake::Registry::start().await, fake::Registry::start().await);
    let bytes = noise(LENGTH);
    mirror.put_blob(bytes.clone());
    mirror.fault(fake::Fault::SlowAfter { after: SIZE / 2, rate: SLOW });
    let limited = equally(FAST);
    mirror.fault(limited.clone());
    upstream.fault(limited);
    let mut options = options(32 * MIB);
    options.hosts = mirrored(&upstream, &[&mirror]);
    let (digest, recorder) = fetch(&upstream, options, &bytes).await;
    assert!(upstream.served(&digest) > 0);
    assert!(!recorder.2.lock().unwrap().is_empty());
    assert!(recorder.1.lock().unwrap().is_empty(), "the mirror did not fail");
}

#[tokio::test]
async fn parts_are_spread_over_mirrors() {
    let servers = [(); 3].map(|()| fake::Registry::spawn());
    let [near, far, upstream] = &servers;
    let bytes = noise(LENGTH);
    for mirror in [near, far] {
        mirror.put_blob(bytes.clone());
        mirror.fault(equally(8_000_000));
    }
    let mut options = options(32 * MIB);
    options.hosts = mirrored(upstream, &[near, far]);
    let (digest, _) = fetch(upstream, options, &bytes).await;
    assert!(near.served(&digest) > MIB && far.served(&digest) > MIB);
    assert_eq!(upstream.served(&digest), 0);
}

#[tokio::test]
async fn the_bytes_are_right_however_parts_fail() {
    let bytes = noise(LENGTH / 2);
    let digest = Digest::sha256(&bytes);
    let slow = equally(30_000_000);
    let wrong = |value: &str| fake::Fault::WrongContentRange { value: value.into(), times: 1 };
    let at = |offsets: Vec<u64>| offsets.into_iter().map(|mib| mib * MIB + 5).collect::<Vec<u64>>();
    for (name, fault) in [
        ("dropped", fake::Fault::DropAt { digest: digest.clone(), offsets: at(vec![1, 3, 5, 9, 11]) }),
        ("refused", fake::Fault::RangeRefused { times: 2 }),
        ("wrong range", wrong("bytes 0-9/10")),
        ("malformed", wrong("bytes")),
        ("busy", fake::Fault::Status { path: "blobs".into(), status: 429, times: 3, retry_after: None }),
    ] {
        // With little memory, few parts are fetched at once.
        for memory in [0, 3 * MIB, 64 * MIB] {
            let server = fake::Registry::start().await;
            server.fault(slow.clone());
            server.fault(fault.clone());
            let (_, recorder) = fetch(&server, options(memory), &bytes).await;
            assert!(recorder.1.lock().unwrap().is_empty(), "{name}");
        }
    }
}

#[tokio::test]
async fn a_server_that_answers_with_less_than_the_range_ends() {
    let server = fake::Registry::start().await;
    let bytes = noise(LENGTH / 8);
    // After the first cut, each response has a quarter of a MiB.
    let cut = fake::Fault::DropAt { digest: Digest::sha256(&bytes), offsets: vec![MIB] };
    server.fault(cut);
    server.fault(fake::Fault::ShortRanges { bytes: MIB / 4 });
    fetch(&server, options(32 * MIB), &bytes).await;
    assert!(server.requests("blobs") <= 12, "{}", server.requests("blobs"));
}
