//! `systemd/larder.service`, without a running systemd: its syntax, its exposure, and the daemon under its
//! restrictions.

pub(crate) mod syscalls;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use larder::caches::layout::Layout;
use larder_model::chain::ChainId;
use larder_model::digest::Digest;
use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::LayerBuilder;
use larder_testing::registry::Fault;

use crate::confine::demanding;
use crate::harness::daemon::{Daemon, ROOMY, Tenant, on_disks};
use crate::harness::served::{Served, random};
use crate::harness::tree::{Kind, Tolerance, differences, scan};
use crate::harness::{Need, isolated, larder, run_within, succeed};

const UNIT: &str = include_str!("../../systemd/larder.service");
const A: Tenant = Tenant("team-a");
const LIMIT: Duration = Duration::from_secs(120);

/// Maximum exposure that `systemd-analyze security` can find, tenths of 10. The rest is inherent to the
/// daemon. It runs as root, contacts any registry, writes files of any type, and mounts the disks of caches.
/// It also gives its builders namespaces, a root directory and a filter of system calls. These last three
/// cost 0.3, because the unit must allow the calls for them.
const EXPOSURE: u32 = 44;

/// Returns the values of a key that can occur several times.
fn values(key: &str) -> impl Iterator<Item = &'static str> {
    let lines = UNIT.lines().filter_map(move |line| line.strip_prefix(key)?.strip_prefix('='));
    lines.flat_map(str::split_whitespace)
}

/// Returns the unit with `more` keys of `[Service]`, as if `larder` were installed.
fn installed(dir: &Path, more: &str) -> PathBuf {
    let program = larder().get_program().to_str().unwrap().to_owned();
    let text =
        UNIT.replace("/usr/bin/larder", &program).replace("[Service]\n", &format!("[Service]\n{more}"));
    let path = dir.join("larder.service");
    fs::write(&path, text).unwrap();
    path
}

/// Runs `systemd-analyze`. Returns its output, and whether it succeeded.
fn analyze(arguments: &[&str], unit: &Path) -> (bool, String) {
    let mut command = Command::new("systemd-analyze");
    command.args(arguments).arg("--no-pager").arg(unit);
    let output = run_within(&mut command, LIMIT);
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[case]
fn systemd_understands_every_line() {
    isolated(&[Need::Program("systemd-analyze")], || {
        let dir = tempfile::tempdir().unwrap();
        // systemd only warns about an unknown key. Other output concerns other units of this machine.
        let verify = |more| {
            let (content, said) = analyze(&["verify", "--man=no"], &installed(dir.path(), more));
            content && !said.contains("larder")
        };
        assert!(verify(""), "{}", analyze(&["verify", "--man=no"], &installed(dir.path(), "")).1);
        assert!(!verify("NoSuchKey=yes\n") && !verify("WatchdogSec=soon\n"));
    });
}

#[case]
fn its_exposure_is_within_the_limit() {
    isolated(&[Need::Program("systemd-analyze")], || {
        let dir = tempfile::tempdir().unwrap();
        let threshold = format!("--threshold={EXPOSURE}");
        let measure = |unit: &Path| analyze(&["security", "--offline=true", threshold.as_str()], unit);
        let (content, said) = measure(&installed(dir.path(), ""));
        assert!(content, "{said}");
        let laxer = UNIT.replace("NoNewPrivileges=yes", "").replace("SystemCallFilter=", "#");
        let path = dir.path().join("laxer.service");
        fs::write(&path, laxer).unwrap();
        assert!(!measure(&path).0);
    });
}

/// Returns a command prefix that sets exactly the capabilities of the unit.
fn with_its_capabilities() -> Vec<String> {
    let names = values("CapabilityBoundingSet").map(|name| name.strip_prefix("CAP_").unwrap().to_lowercase());
    let set: String = names.map(|name| format!(",+{name}")).collect();
    ["setpriv", "--no-new-privs", "--inh-caps=-all", &format!("--bounding-set=-all{set}")]
        .map(str::to_owned)
        .into()
}

#[case]
fn its_capabilities_are_enough() {
    isolated(&[Need::Program("setpriv"), Need::Program("busybox")], || {
        let image = demanding();
        let diff_ids: Vec<Digest> = image.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let served = Served::new([image]);
        let daemon = Daemon::start_by(&with_its_capabilities(), &[A], ROOMY);
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
        let bounds = status.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap();
        let bounds = u64::from_str_radix(bounds, 16).unwrap();
        assert_eq!(bounds.count_ones() as usize, values("CapabilityBoundingSet").count(), "{bounds:x}");

        let id = daemon.order(A, "web", &served.references());
        daemon.settle(A, &id, "Available", LIMIT);
        let bound = Layout::new(daemon.state()).volume(&A.0.parse().unwrap(), &id.parse().unwrap(), 1);
        succeed(larder().arg("verify").arg(&bound));
        // A build with all capabilities writes the same.
        succeed(&mut served.build(&served.volume(), 256 << 20));
        for chain in ChainId::chain(&diff_ids) {
            let of = |volume: &Path| scan(&volume.join("overlay").join(chain.hex()).join("diff"));
            let mut free = of(&served.volume());
            // A whiteout has no defined time, nor has a directory that no layer contains.
            free.values_mut().filter(|e| e.kind == Kind::Character(0)).for_each(|e| e.mtime = None);
            let tolerance = Tolerance { directory_times: true, ..Tolerance::default() };
            let differ = differences(&free, &of(&bound), tolerance);
            assert!(differ.is_empty(), "{differ:#?}");
        }
        let seal = fs::read_to_string(bound.join("cache.json")).unwrap();
        assert!(!seal.contains("opaque_as_whiteouts"), "trusted attributes are written: {seal}");
    });
}

#[case]
fn its_capabilities_are_enough_for_disks() {
    isolated(&[Need::Program("setpriv"), Need::Program("busybox"), Need::Program("mkfs.ext4")], || {
        let served = Served::new([demanding()]);
        let daemon = Daemon::start_by(&with_its_capabilities(), &[A], &on_disks());
        for name in ["fetched", "reused"] {
            let id = daemon.order(A, name, &served.references());
            daemon.settle(A, &id, "Available", LIMIT);
            let volume = Layout::new(daemon.state()).volume(&A.0.parse().unwrap(), &id.parse().unwrap(), 1);
            succeed(larder().arg("verify").arg(&volume));
            let seal = fs::read_to_string(volume.join("cache.json")).unwrap();
            assert!(!seal.contains("opaque_as_whiteouts"), "trusted attributes are written: {seal}");
        }
    });
}

#[case]
fn its_capabilities_are_enough_to_end_a_builder() {
    isolated(&[Need::Program("setpriv")], || {
        let served = Served::new([slow()]);
        let blob = served.images[0].layers[0].digest.clone();
        served.registry.fault(Fault::StallAt { digest: blob.clone(), offsets: vec![1000] });
        // With `Nice=` in a drop-in, builders have the niceness of the daemon, because it cannot decrease.
        let nice = ["nice", "-n", "12"].map(str::to_owned);
        let starter = [&nice[..], &with_its_capabilities()].concat();
        let daemon = Daemon::start_by(&starter, &[A], ROOMY);
        let id = daemon.order(A, "web", &served.references());
        wait(|| served.registry.served(&blob) > 0, "the fetch of the layer has begun");
        let builders = daemon.children();
        assert!(!builders.is_empty());
        daemon.ask(A, "DELETE", &format!("/v5/imagecaches/{id}"), None).expect(202);
        wait(|| daemon.children().is_empty(), "the builder is gone");
        assert!(!daemon.log().contains("not permitted"), "{}", daemon.log());
    });
}

/// Returns an image with enough bytes for a registry to stall in the middle.
fn slow() -> Image {
    let layer = Layer::from(LayerBuilder::new().file("f", random(1, 1 << 20)).gzip());
    Image::builder(Format::Oci).layer(layer).build()
}

fn wait(done: impl Fn() -> bool, what: &str) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "timeout after {LIMIT:?}: {what}");
        sleep(Duration::from_millis(20));
    }
}
