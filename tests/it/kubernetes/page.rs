//! `docs/kubernetes.md`, done: its commands, by the real `kubectl`, with a daemon in between.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use larder::testing::image::{Format, Image, Layer};
use larder::testing::kubernetes::{Cluster, Node};
use larder::testing::layer::LayerBuilder;

use crate::harness::cluster::LARDER;
use crate::harness::registry::{PASSWORD, Registry, USER};
use crate::harness::served::{Running, random};
use crate::harness::{Need, isolated, larder, succeed};

const NEEDS: &[Need] = &[
    Need::Program("kubectl"),
    Need::Program("docker-registry"),
    Need::Program("htpasswd"),
    Need::Program("openssl"),
];

/// The blocks of the page that are marked `sh`, in order.
fn commands() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/kubernetes.md")).unwrap();
    let blocks = page.split("\n```sh\n").skip(1).map(|rest| rest.split_once("\n```\n").unwrap().0.to_owned());
    blocks.collect()
}

#[test]
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
        for (name, user) in [("admin", "kubernetes-admin"), ("larder", LARDER)] {
            fs::write(at(&format!("{name}.token")), cluster.token(user)).unwrap();
            let kubeconfig = cluster.kubeconfig(&at(&format!("{name}.token")), "default");
            fs::write(at(&format!("{name}.kubeconfig")), kubeconfig).unwrap();
        }
        // The sources, and what is an administrator's own.
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("config/kubernetes"), &at("config/kubernetes"));
        fs::create_dir(at("bin")).unwrap();
        symlink(env!("CARGO_BIN_EXE_larder"), at("bin/larder")).unwrap();
        let certificate = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=larder.larder.svc -keyout tls.key \
                           -out tls.crt && cp tls.crt ca.crt";
        succeed(Command::new("sh").args(["-c", certificate]).current_dir(dir.path()));

        let mut daemon = None;
        for block in commands() {
            let script = block
                .replace("registry.example.com", &registry.host())
                // The server of tests describes no fields to clients; it refuses what it does not know by itself.
                .replace("kubectl apply ", "kubectl apply --validate=false ")
                .replace("--docker-username=puller", &format!("--docker-username={USER}"))
                .replace("--docker-password=secret", &format!("--docker-password='{PASSWORD}'"));
            let said = succeed(
                Command::new("bash")
                    .args(["-euo", "pipefail", "-c", &script])
                    .current_dir(dir.path())
                    .env("PATH", format!("{}:/usr/bin:/bin", at("bin").display()))
                    .env("HOME", dir.path())
                    .env("KUBECONFIG", at("admin.kubeconfig")),
            );
            if block.contains("kubectl apply --server-side -k cluster") && daemon.is_none() {
                daemon = Some(deployed(&cluster, &at("larder.kubeconfig"), dir.path()));
            }
            if block.contains("get ic") {
                let line = said.lines().find(|line| line.starts_with("web ")).unwrap();
                assert!(line.contains("web"), "{said}");
            }
        }
        // A disk with the images on it is what the page ends with before everything goes.
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

/// What the cluster would start: the Deployment's program with the ConfigMap's configuration.
fn deployed(cluster: &Cluster, kubeconfig: &Path, dir: &Path) -> Running {
    let deployment = cluster.peek("apps", "deployments", "larder", "larder").unwrap();
    let pod = &deployment["spec"]["template"]["spec"];
    let name = pod["volumes"][0]["configMap"]["name"].as_str().unwrap();
    let config = cluster.peek("", "configmaps", "larder", name).unwrap();
    let config = config["data"]["larder.toml"].as_str().unwrap();
    let own = |name: &str| dir.join(name).display().to_string();
    // No pod: it has neither the mounts nor the ServiceAccount of one.
    let config = config
        .replace("0.0.0.0:8443", "127.0.0.1:0")
        .replace("/tls/", &format!("{}/", dir.display()))
        .replace("runner = ", &format!("kubeconfig = \"{}\"\nrunner = ", kubeconfig.display()));
    let config = format!("state.dir = \"{}\"\napi.socket = \"{}\"\n{config}", own("state"), own("socket"));
    fs::write(dir.join("larder.toml"), config).unwrap();
    let log = fs::File::create(dir.join("log")).unwrap();
    let mut serve = larder();
    serve.arg("serve").arg("--config").arg(dir.join("larder.toml")).stderr(log);
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
