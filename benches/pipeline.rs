//! The whole pipeline: a registry in this process, `larder::builder::run`, a sealed volume.
//!
//! Each iteration uses a new volume in /dev/shm (see apply.rs), which is removed outside of the measured
//! time.

use std::path::Path;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use larder::builder::cancel::Cancel;
use larder::builder::events;
use larder::builder::order::{BuildRequest, HostOverrides, ImageSource, RegistryOptions};
use larder::config::Config;
use larder_model::event::Status;
use larder_model::job::{LayerFormat, NetworkAccess, VolumeKind};
use larder_model::platform::Platform;
use larder_model::size::ByteSize;
use larder_model::sizing::Sizing;
use larder_testing::image::{Format, Image, from_files};
use larder_testing::registry::Registry;
use tempfile::TempDir;
use tokio::runtime::Runtime;

fn order(volume: &Path, reference: &str, tar_split: bool) -> BuildRequest {
    BuildRequest {
        images: vec![reference.parse().expect("the reference is valid")],
        volume: volume.to_owned(),
        size: ByteSize(8 << 30),
        size_is_computed: false,
        sizing: Sizing::Enforce,
        platform: Platform::host(),
        volume_kind: VolumeKind::Directory,
        layer_format: LayerFormat::Overlay,
        layer_format_given: false,
        verity: false,
        tar_split,
        rootless: false,
        verify_after: false,
        concurrency: 4,
        sign_key: None,
        signer: None,
        supervisor: None,
        fetcher: None,
        standard_input: None,
        share: None,
        deadline: None,
        source: ImageSource::Registries,
        registry: RegistryOptions {
            connections_per_host: 6,
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
        },
    }
}

/// Publishes the image in `registry`. Returns its reference and the size of its tars in bytes.
fn publish(registry: &Registry, limit: u64) -> (String, u64) {
    let paths = ["/usr/lib", "/usr/share", "/usr/bin"].map(Path::new);
    let layers = from_files(&paths, limit).expect("the machine's own files can be read");
    let mut size = 0;
    for layer in &layers {
        registry.put_blob(layer.blob.clone());
        let mut tar = flate2::read::MultiGzDecoder::new(&layer.blob[..]);
        size += std::io::copy(&mut tar, &mut std::io::sink()).expect("the sample is whole");
    }
    let image = Image::builder(Format::Oci).layers(layers).build();
    registry.put_blob(image.config.bytes.clone());
    registry.put_manifest("bench/files", "1", &image.manifest.media_type, image.manifest.bytes.clone());
    (format!("{}/bench/files:1", registry.host()), size)
}

fn pipeline(criterion: &mut Criterion) {
    let full = !std::env::args().any(|arg| arg == "--test");
    let registry = Registry::spawn();
    let (reference, size) = publish(&registry, if full { 128 << 20 } else { 1 << 20 });
    let runtime = Runtime::new().expect("a runtime can be created");
    let fresh = || TempDir::new_in("/dev/shm").expect("/dev/shm can be written");
    let mut group = criterion.benchmark_group("pipeline");
    group.throughput(Throughput::Bytes(size));
    group.sample_size(10).measurement_time(Duration::from_secs(10)).warm_up_time(Duration::from_secs(1));
    for (name, tar_split) in [("plain", false), ("tar-split", true)] {
        group.bench_function(name, |bencher| {
            let run = |volume: TempDir| {
                let order = order(volume.path(), &reference, tar_split);
                let (events, _) = events::channel();
                let outcome =
                    runtime.block_on(larder::builder::run(order, Config::default(), events, Cancel::new()));
                assert_eq!(outcome.status, Status::Ok, "{}", outcome.message);
                volume
            };
            bencher.iter_batched(fresh, run, BatchSize::PerIteration);
        });
    }
    group.finish();
}

criterion_group!(benches, pipeline);
criterion_main!(benches);
