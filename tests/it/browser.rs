//! The pages of the daemon in a real browser (`tests/it/browser`).

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs};

use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::LayerBuilder;
use larder_testing::registry::{Fault, Registry};
use serde_json::json;

use crate::harness::daemon::{Daemon, ROOMY, Tenant};
use crate::harness::python::pytest;
use crate::harness::registry::one_registry_for_all;
use crate::harness::served::random;
use crate::harness::{Need, isolated, larder, succeed};

const A: Tenant = Tenant("web-shop");
const B: Tenant = Tenant("research");
const LIMIT: Duration = Duration::from_secs(240);
/// Rate of the slow registry: a piece of a layer, and the pause before it.
const PIECE: u64 = 24 << 10;
const PAUSE: Duration = Duration::from_millis(15);
/// An image whose build takes several seconds.
const SLOW: (&str, &str) = ("shop/checkout", "2.4.1");
/// The size of each of its layers, compressed in KiB and uncompressed in MiB.
const SLOW_LAYERS: [(usize, usize); 9] =
    [(2600, 10), (5200, 12), (900, 4), (3400, 24), (260, 2), (1900, 40), (40, 1), (1300, 5), (120, 30)];

/// Returns a layer of `kib` KiB, which are `mib` MiB when they are decompressed.
fn layer(seed: u64, (kib, mib): (usize, usize)) -> Layer {
    let random = random(seed, kib << 10);
    let same = vec![1; (mib << 20).saturating_sub(random.len())];
    let files = LayerBuilder::new().dir("opt").file(format!("opt/{seed}"), random);
    files.file(format!("opt/{seed}.pack"), same).gzip().into()
}

fn image(layers: impl IntoIterator<Item = Layer>) -> Image {
    Image::builder(Format::Oci).layers(layers).build()
}

/// Returns the directory of the screenshots: that of `LARDER_SCREENSHOTS`, or else a temporary one.
fn screenshots(temporary: &Path) -> PathBuf {
    let Some(given) = env::var_os("LARDER_SCREENSHOTS") else { return temporary.to_owned() };
    fs::create_dir_all(&given).unwrap();
    fs::canonicalize(given).unwrap()
}

/// Fills a registry with small images that share their base, and with a slow one.
fn registry() -> Registry {
    let mut registry = Registry::spawn();
    let base = layer(1, (700, 8));
    let small = ["library/nginx:1.27", "library/redis:7", "library/python:3.13", "library/traefik:3.5"];
    for (at, name) in small.iter().enumerate() {
        let (repository, tag) = name.split_once(':').unwrap();
        let seed = 10 * (at as u64 + 1);
        let layers = [base.clone(), layer(seed, (300 + 150 * at, 5 + 3 * at)), layer(seed + 1, (60, 1))];
        image(layers).push(&mut registry, repository, tag).unwrap();
    }
    let slow = (100..).zip(SLOW_LAYERS).map(|(seed, size)| layer(seed, size));
    let slow = image([base].into_iter().chain(slow));
    slow.push(&mut registry, SLOW.0, SLOW.1).unwrap();
    for layer in &slow.layers {
        registry.fault(Fault::Dribble { digest: layer.digest.clone(), bytes: PIECE, every: PAUSE });
    }
    registry
}

/// One daemon and one browser for all of them, because both take a while to start.
#[case]
fn the_pages_in_a_browser() {
    isolated(&[Need::Chromium], || {
        let registry = registry();
        let dir = tempfile::tempdir().unwrap();
        let certs_d = one_registry_for_all(dir.path(), &registry.host());
        let daemon = Daemon::start(&[A, B], &format!("{ROOMY}caches.build_retries = 0\n{certs_d}"));
        let order = |tenant, name, images: &[&str]| {
            daemon.order(tenant, name, &images.iter().map(|image| (*image).to_owned()).collect::<Vec<_>>())
        };
        let foreign = order(B, "notebooks", &["python:3.13"]);
        let available = order(A, "storefront", &["nginx:1.27", "redis:7"]);
        let others =
            [order(A, "ingress", &["traefik:3.5"]), order(A, "batch-jobs", &["python:3.13", "redis:7"])];
        let failed = order(A, "reports", &["registry.example.com/shop/reports:9"]);
        for (tenant, id) in others.iter().map(|id| (A, id)).chain([(A, &available), (B, &foreign)]) {
            daemon.settle(tenant, id, "Available", LIMIT);
        }
        daemon.settle(A, &failed, "Failed", LIMIT);
        let report = dir.path().join("report.html");
        let mut command = larder();
        command.args(["cache", "report", "storefront", "--html"]).arg(&report);
        succeed(command.env("LARDER_HOST", daemon.endpoint()).env("LARDER_TOKEN", A.token()));
        let stage = json!({
            "endpoint": daemon.endpoint(), "tenants": [A.credentials(), B.credentials()],
            "available": available, "failed": failed, "foreign": foreign,
            "slow": format!("registry.example.com/{}:{}", SLOW.0, SLOW.1), "layers": SLOW_LAYERS.len() + 1,
            "report": report, "screenshots": screenshots(dir.path()),
        });
        let files = ["test_cache.py", "test_access.py", "test_looks.py"];
        let printed = daemon.explain(|| pytest("browser", &files, &stage, LIMIT));
        eprintln!("{printed}");
    });
}
