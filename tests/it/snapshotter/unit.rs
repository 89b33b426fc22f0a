//! `systemd/larder-snapshotter.service` and `.socket`, without a running systemd.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use larder::node::snapshotter::SOCKET;
use larder_model::chain::ChainId;
use larder_model::job::LayerFormat;
use nix::sys::signal::Signal;

use crate::harness::served::Served;
use crate::harness::snapshots::{Mounted, Snapshotter};
use crate::harness::{Need, isolated, larder, run_within, succeed};
use crate::images::images;
use crate::unit::syscalls::{allowed, made};

const UNIT: &str = include_str!("../../../systemd/larder-snapshotter.service");
const SOCKET_UNIT: &str = include_str!("../../../systemd/larder-snapshotter.socket");
const LIMIT: Duration = Duration::from_secs(120);

/// Maximum exposure that `systemd-analyze security` can report, tenths of 10. The service mounts for the
/// whole host, so no setting can give it its own mount namespace.
const EXPOSURE: u32 = 64;

fn analyze(arguments: &[&str], text: &str) -> (bool, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("larder-snapshotter.service");
    fs::write(dir.path().join("larder-snapshotter.socket"), SOCKET_UNIT).unwrap();
    let program = larder().get_program().to_str().unwrap().to_owned();
    fs::write(&path, text.replace("/usr/bin/larder", &program)).unwrap();
    let mut command = Command::new("systemd-analyze");
    command.args(arguments).arg("--no-pager").arg(path);
    let output = run_within(&mut command, LIMIT);
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[case]
fn systemd_understands_it() {
    isolated(&[Need::Program("systemd-analyze")], || {
        let verify = |text: &str| {
            let (content, said) = analyze(&["verify", "--man=no"], text);
            (content && !said.contains("larder"), said)
        };
        let (content, said) = verify(UNIT);
        assert!(content, "{said}");
        assert!(!verify(&UNIT.replace("[Service]\n", "[Service]\nNoSuchKey=yes\n")).0);
        let threshold = format!("--threshold={EXPOSURE}");
        let (content, said) = analyze(&["security", "--offline=true", &threshold], UNIT);
        assert!(content, "{said}");
    });
}

#[case]
fn systemd_listens_where_containerd_asks() {
    let has = |unit: &str, line: &str| unit.lines().any(|has| has == line);
    assert!(has(SOCKET_UNIT, &format!("ListenStream={SOCKET}")));
    assert!(has(SOCKET_UNIT, "SocketMode=0600") && has(SOCKET_UNIT, "Before=containerd.service"));
    assert!(has(UNIT, "Requires=larder-snapshotter.socket") && has(UNIT, "Also=larder-snapshotter.socket"));
    // The directory of the socket is kept when the service stops.
    assert!(!UNIT.contains("\nRuntimeDirectory="));
    isolated(&[Need::Program("systemd-analyze")], || {
        let dir = tempfile::tempdir().unwrap();
        let program = larder().get_program().to_str().unwrap().to_owned();
        fs::write(dir.path().join("larder-snapshotter.service"), UNIT.replace("/usr/bin/larder", &program))
            .unwrap();
        let path = dir.path().join("larder-snapshotter.socket");
        for (text, is_good) in
            [(SOCKET_UNIT.to_owned(), true), (SOCKET_UNIT.replace("SocketMode=", "Mode="), false)]
        {
            fs::write(&path, text).unwrap();
            let mut verify = Command::new("systemd-analyze");
            let output = run_within(verify.args(["verify", "--man=no", "--no-pager"]).arg(&path), LIMIT);
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert_eq!(output.status.success() && !said.contains("larder"), is_good, "{said}");
        }
    });
}

#[case]
fn nothing_hides_its_mounts() {
    // Each of these gives a service a mount namespace (systemd.exec(5)).
    let hiding = [
        "Protect",
        "Private",
        "ReadOnly",
        "ReadWrite",
        "Inaccessible",
        "Exec",
        "TemporaryFileSystem",
        "Bind",
        "RootDirectory",
        "RootImage",
        "MountFlags",
        "MountAPIVFS",
        "DynamicUser",
        "LoadCredential",
        "ProcSubset",
        "NoExecPaths",
    ];
    for key in UNIT.lines().filter_map(|line| Some(line.split_once('=')?.0)) {
        let hides = hiding.iter().any(|word| key.starts_with(word) && key != "ExecStart");
        assert!(!hides, "{key}");
    }
}

/// Runs the main functions of a snapshotter.
fn exercise(snapshotter: &Snapshotter, served: &Served, volume: &Path) {
    let client = &snapshotter.client;
    let at = snapshotter.attach(volume, "v");
    let diff_ids: Vec<_> = served.images[0].layers.iter().map(|layer| layer.diff_id.clone()).collect();
    let mut parent = String::new();
    for chain in ChainId::chain(&diff_ids) {
        parent = client.take(&chain.to_string(), &parent).expect("the volume does not serve the layer");
    }
    let active = Mounted::new(&client.prepare("active", &parent, &[]).unwrap());
    fs::create_dir(active.at("dir")).unwrap();
    nix::unistd::chown(&active.at("dir"), Some(5.into()), Some(6.into())).unwrap();
    fs::write(active.at("dir/file"), "x").unwrap();
    fs::set_permissions(active.at("dir"), Permissions::from_mode(0o000)).unwrap();
    assert_eq!(client.usage("active").unwrap().inodes, 3);
    drop(active);
    client.commit("layer", "active", &[]).unwrap();
    client.view("view", "layer").unwrap();
    client.update("view", &[("a", "b")], &[]).unwrap();
    let mut names: Vec<String> = client.list(&[]).unwrap().into_iter().map(|info| info.name).collect();
    while let Some(name) = names.pop() {
        client.remove(&name).unwrap();
    }
    client.cleanup().unwrap();
    assert_eq!(fs::read_dir(snapshotter.root().join("snapshots")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(snapshotter.root().join("l")).unwrap().count(), 0);
    snapshotter.detach(&at);
}

fn volume_of_images(form: LayerFormat) -> (Served, std::path::PathBuf) {
    let served = Served::new(images()).with(form);
    let volume = served.volume();
    succeed(&mut served.build(&volume, 64 << 20));
    (served, volume)
}

#[case]
fn its_capabilities_are_enough() {
    isolated(&[Need::Erofs, Need::Program("setpriv")], || {
        let lines = UNIT.lines().filter_map(|line| line.strip_prefix("CapabilityBoundingSet="));
        let names = lines.flat_map(str::split_whitespace).map(|name| name.strip_prefix("CAP_").unwrap());
        let set: String = names.map(|name| format!(",+{}", name.to_lowercase())).collect();
        let starter = ["setpriv", "--no-new-privs", "--inh-caps=-all", &format!("--bounding-set=-all{set}")];
        for form in [LayerFormat::Overlay, LayerFormat::Erofs] {
            let (served, volume) = volume_of_images(form);
            let snapshotter = Snapshotter::start_by(&starter.map(str::to_owned));
            exercise(&snapshotter, &served, &volume);
            assert!(!snapshotter.log().contains("WARN"), "{}", snapshotter.log());
        }
    });
}

#[case]
fn every_call_that_is_made_is_allowed() {
    isolated(&[Need::Erofs, Need::Program("systemd-analyze"), Need::Program("strace")], || {
        let (served, volume) = volume_of_images(LayerFormat::Erofs);
        let dir = tempfile::tempdir().unwrap();
        let summary = dir.path().join("calls");
        let starter = ["strace", "-D", "-f", "-c", "-U", "name", "-o", summary.to_str().unwrap()];
        let mut snapshotter = Snapshotter::activated_by(&starter.map(str::to_owned));
        snapshotter.restart();
        exercise(&snapshotter, &served, &volume);
        snapshotter.process().signal(Signal::SIGTERM);
        assert_eq!(snapshotter.process().code_within(LIMIT), Some(0));
        let deadline = Instant::now() + LIMIT;
        let made = loop {
            if let Some(made) = made(&summary) {
                break made;
            }
            assert!(Instant::now() < deadline, "strace wrote no summary");
            std::thread::sleep(Duration::from_millis(50));
        };
        for certain in ["accept4", "pidfd_getfd", "fsmount", "move_mount", "umount2", "symlinkat", "fchown"] {
            assert!(made.contains(certain), "{certain} is not in {made:?}");
        }
        let refused: Vec<_> = made.difference(&allowed(UNIT)).cloned().collect();
        assert!(refused.is_empty(), "the unit refuses {refused:?}");
    });
}
