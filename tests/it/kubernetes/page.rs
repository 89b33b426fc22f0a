//! Runs the commands of `docs/kubernetes.md` with the real `kubectl`, and with a daemon in between.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use larder_fake_kubernetes::{Cluster, DRIVER, Node};
use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::LayerBuilder;
use serde_json::{Value, json};

use crate::harness::authority::Authority;
use crate::harness::cluster::LARDER;
use crate::harness::front::Front;
use crate::harness::registry::{PASSWORD, Registry, USER};
use crate::harness::served::{Running, random};
use crate::harness::{Need, isolated, larder, run_within, succeed};

const NEEDS: &[Need] = &[
    Need::Program("kubectl"),
    Need::Program("docker-registry"),
    Need::Program("htpasswd"),
    Need::Program("openssl"),
];

/// Time limit for a block of commands.
const LIMIT: Duration = Duration::from_secs(90);

/// The server of the tests accepts no protobuf, which `kubectl create` sends, and publishes no schema, which
/// `kubectl apply` requests. The server itself refuses unknown fields.
const KUBECTL: &str = r#"#!/bin/bash
set -euo pipefail
case " $* " in
*" create "*) /usr/bin/kubectl "$@" --dry-run=client -o yaml | /usr/bin/kubectl apply --validate=false --server-side -f - ;;
*" apply "*) exec /usr/bin/kubectl "$@" --validate=false ;;
*) exec /usr/bin/kubectl "$@" ;;
esac
"#;

/// Returns the blocks of the page that are marked `sh`, in order.
fn commands() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/kubernetes.md")).unwrap();
    let blocks = page.split("\n```sh\n").skip(1).map(|rest| rest.split_once("\n```\n").unwrap().0.to_owned());
    blocks.collect()
}

#[case]
fn the_page_for_administrators_holds() {
    isolated(NEEDS, || {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let registry = Registry::with_password();
        let layer = Layer::from(LayerBuilder::new().file("x", random(1, 50_000)).gzip());
        registry.push(&Image::builder(Format::Oci).layer(layer).build(), "team/app", "4");

        let cluster = Cluster::new();
        cluster.install_storage("Delete");
        cluster.add_node(Node {
            name: "node-a".to_owned(),
            labels: Vec::new(),
            program: env!("CARGO_BIN_EXE_larder").into(),
            images: Some(vec![format!("{}/larder:0.1.0", registry.host())]),
            environment: Vec::new(),
        });
        let authority = Authority::new(dir.path());
        authority.sign("server", "subjectAltName=IP:127.0.0.1");
        let behind = cluster.url().trim_start_matches("http://").parse().unwrap();
        let front = Front::start(behind, dir.path(), "server");
        for (name, user) in [("admin", "kubernetes-admin"), ("larder", LARDER)] {
            let token = at(&format!("{name}.token"));
            fs::write(&token, cluster.token(user)).unwrap();
            let mut kubeconfig: Value = serde_json::from_str(&cluster.kubeconfig(&token, "default")).unwrap();
            kubeconfig["clusters"][0]["cluster"] =
                json!({"server": front.url(), "certificate-authority": at("ca.pem")});
            fs::write(at(&format!("{name}.kubeconfig")), kubeconfig.to_string()).unwrap();
        }
        // The sources, and the files of an administrator.
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("config/kubernetes"), &at("config/kubernetes"));
        fs::create_dir(at("bin")).unwrap();
        symlink(env!("CARGO_BIN_EXE_larder"), at("bin/larder")).unwrap();
        fs::write(at("bin/kubectl"), KUBECTL).unwrap();
        fs::set_permissions(at("bin/kubectl"), fs::Permissions::from_mode(0o755)).unwrap();
        authority.sign("tls", "subjectAltName=DNS:larder.larder.svc");
        for (from, to) in [("tls.pem", "tls.crt"), ("ca.pem", "ca.crt")] {
            fs::copy(at(from), at(to)).unwrap();
        }

        // Kustomize 2.0, in Debian 12's kubectl, has another name for the following.
        let version = succeed(Command::new("kubectl").args(["version", "--client"]));
        let below = if version.contains("v1.20") { "bases: [" } else { "resources: [" };
        let mut daemon = None;
        for block in commands() {
            let script = block
                .replace("registry.example.com", &registry.host())
                .replace("csi.example.com", DRIVER)
                .replace("resources: [", below)
                .replace("--docker-username=puller", &format!("--docker-username={USER}"))
                .replace("--docker-password=secret", &format!("--docker-password='{PASSWORD}'"));
            // Also stops child processes if the command takes too long.
            let mut bash = Command::new("timeout");
            bash.args(["60", "bash", "-euo", "pipefail", "-c", &script])
                .current_dir(dir.path())
                .env("HOME", dir.path());
            bash.env("PATH", format!("{}:/usr/bin:/bin", at("bin").display()));
            let done = run_within(bash.env("KUBECONFIG", at("admin.kubeconfig")), LIMIT);
            let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
            let log = || fs::read_to_string(at("log")).unwrap_or_default();
            assert!(done.status.success(), "{script}\n{said}\n{}", log());
            if block.contains("kubectl apply --server-side -k cluster") && daemon.is_none() {
                daemon = Some(deployed(&cluster, &at("larder.kubeconfig"), dir.path()));
            }
            if block.contains("kind: PersistentVolumeClaim") {
                let claim = || cluster.peek("", "persistentvolumeclaims", "team-b", "images").unwrap();
                let deadline = Instant::now() + LIMIT;
                while claim()["status"]["phase"] != "Bound" {
                    assert!(Instant::now() < deadline, "{}", claim());
                    sleep(Duration::from_millis(50));
                }
            }
            if block.contains("get ic") {
                let line = said.lines().find(|line| line.starts_with("web ")).unwrap();
                assert!(line.contains("web"), "{said}");
            }
        }
        for (group, plural) in [
            ("larder.dev", "imagecaches"),
            ("apps", "deployments"),
            ("rbac.authorization.k8s.io", "clusterroles"),
        ] {
            let left = cluster.peek_all(group, plural, "");
            assert!(left.is_empty(), "{left:?}");
        }
        assert_eq!(cluster.stored_snapshots(), 0);
    });
}

/// Starts the process that the cluster would start: the Deployment's program with the ConfigMap's
/// configuration.
fn deployed(cluster: &Cluster, kubeconfig: &Path, dir: &Path) -> Running {
    let deployment = cluster.peek("apps", "deployments", "larder", "larder").unwrap();
    let pod = &deployment["spec"]["template"]["spec"];
    let name = pod["volumes"][0]["configMap"]["name"].as_str().unwrap();
    let config = cluster.peek("", "configmaps", "larder", name).unwrap();
    let config = config["data"]["larder.toml"].as_str().unwrap();
    // It is not a pod, so it has neither the mounts nor the ServiceAccount of one.
    let config = config
        .replace("0.0.0.0:8443", "127.0.0.1:0")
        .replace("/tls/", &format!("{}/", dir.display()))
        .replace("runner = ", &format!("kubeconfig = \"{}\"\nrunner = ", kubeconfig.display()));
    fs::write(dir.join("larder.toml"), config).unwrap();
    let log = fs::File::create(dir.join("log")).unwrap();
    let mut serve = larder();
    serve.arg("serve").arg("--config").arg(dir.join("larder.toml")).stderr(log);
    serve.env("LARDER_STATE__DIR", dir.join("state")).env("LARDER_API__SOCKET", dir.join("socket"));
    // The registry of the test is on loopback, which the orders of a namespace cannot reach by default.
    serve.env("LARDER_REGISTRY__ALLOW", "['127.0.0.0/8']");
    Running::of(serve.spawn().unwrap())
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}
