//! The container image of `make image`, run by podman with the settings that pods use: the builder as its Job
//! specifies, the daemon as `config/kubernetes/deployment.yaml` specifies. It contains the statically linked
//! program that all tests use.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use larder_model::image_cache::Status;
use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::LayerBuilder;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::authority::Authority;
use crate::harness::cluster::{LARDER, World, shipped};
use crate::harness::daemon::Tenant;
use crate::harness::dns::NameServer;
use crate::harness::need::statically_linked;
use crate::harness::podman::Podman;
use crate::harness::registry::Registry;
use crate::harness::served::{Running, cache, random};
use crate::harness::{Need, exits, isolated, larder, succeed};

const NEEDS: &[Need] = &[Need::Static, Need::Program("podman"), Need::Program("docker-registry")];
const LIMIT: Duration = Duration::from_secs(60);

/// The capabilities that Pod Security "baseline" allows for a builder.
const CAPABILITIES: &str = "CHOWN,DAC_OVERRIDE,FOWNER,FSETID,MKNOD,SETFCAP";

/// Revision 2 with CAP_NET_BIND_SERVICE permitted and effective (linux/capability.h, vfs_cap_data).
const FILE_CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The image, and a podman that runs it.
struct Packaged {
    dir: TempDir,
    podman: Podman,
}

impl Packaged {
    fn new(more: &[&str]) -> Self {
        // podman treats the path of a layout as a name, which cannot contain capitals.
        let name = format!("larder-image-{}", uuid::Uuid::new_v4().simple());
        let dir = tempfile::Builder::new().prefix(&name).rand_bytes(0).tempdir().unwrap();
        succeed(package().arg(dir.path().join("image")).args(more));
        Packaged { dir, podman: Podman::new() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns the option that mounts a directory or file of this test.
    fn mount(&self, name: &str, to: &str, options: &str) -> String {
        format!("--volume={}:{to}:{options}", self.at(name).display())
    }

    fn run(&self, options: &[String], command: &[&str]) -> Command {
        self.podman.container(options, &format!("oci:{}", self.at("image").display()), command)
    }
}

fn package() -> Command {
    let mut package = Command::new(statically_linked().unwrap());
    package.arg("image");
    package
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// Returns an image whose files have many types and owners, and need each of the six capabilities.
fn demanding() -> Image {
    let below = LayerBuilder::new().file("etc/x", random(1, 300_000)).owner(5, 6).mode(0o555).dir("emptied");
    let below = below.owner(7, 8).file("emptied/a", "a");
    let above = LayerBuilder::new().opaque("emptied").mode(0o4755).owner(1000, 1001).file("bin/setuid", "s");
    let above =
        above.mode(0o2755).file("bin/setgid", "s").owner(0, 0).mode(0o666).char_device("dev/null", 1, 3);
    let above = above.mode(0o755).xattr("security.capability", FILE_CAPABILITY).file("bin/web", "web");
    Image::builder(Format::Oci).layers([below.gzip(), above.zstd()].map(Layer::from)).build()
}

#[case]
fn it_contains_only_the_program_and_is_reproducible() {
    isolated(NEEDS, || {
        let packaged = Packaged::new(&["--revision", "abc"]);
        succeed(package().arg(packaged.at("again")).args(["--revision", "abc"]));
        let index = |name: &str| fs::read(packaged.at(name).join("index.json")).unwrap();
        assert_eq!(index("image"), index("again"));
        let said = exits(64, larder().arg("image").arg(packaged.at("dynamic")));
        assert!(said.contains("needs libraries") && !packaged.at("dynamic").exists(), "{said}");

        let help = succeed(&mut packaged.run(&[], &["--help"]));
        assert!(help.contains("larder build --volume"), "{help}");
        let entrypoint = words(&["--entrypoint=[\"/usr/bin/larder\",\"--version\"]"]);
        assert!(succeed(&mut packaged.run(&entrypoint, &[])).contains(env!("CARGO_PKG_VERSION")));
        let about = succeed(
            Command::new("skopeo")
                .arg("inspect")
                .arg("--config")
                .arg(format!("oci:{}", packaged.at("image").display())),
        );
        let about: Value = serde_json::from_str(&about).unwrap();
        assert_eq!(about["config"]["User"], "65532:65532");
        assert_eq!(about["config"]["Labels"]["org.opencontainers.image.revision"], "abc");
    });
}

#[case]
fn it_builds_as_in_a_pod() {
    isolated(NEEDS, || {
        let packaged = Packaged::new(&[]);
        let registry = Registry::open();
        registry.push(&demanding(), "team/app", "1");
        // A name that the search list of a pod completes. The C library in the program must query DNS without
        // the machine's resolver.
        let (_, port) =
            registry.host().rsplit_once(':').map(|(host, port)| (host.to_owned(), port.to_owned())).unwrap();
        let names = NameServer::start(Ipv4Addr::new(127, 0, 0, 77), "registry.team.svc.larder.test");
        names.configure(&packaged.at("resolv.conf"), "svc.larder.test");
        let host = format!("registry.team:{port}");
        let job = json!({"images": [format!("{host}/team/app:1")], "size": "256MiB"});
        for name in ["job", "cache", "nobody"] {
            fs::create_dir(packaged.at(name)).unwrap();
        }
        fs::write(packaged.at("job/build.json"), job.to_string()).unwrap();
        let config = format!("[[registry.host]]\nname = \"{host}\"\nplain_http = true\n");
        fs::write(packaged.at("job/larder.toml"), config).unwrap();
        fs::write(packaged.at("result"), "").unwrap();

        let build = ["build", "--config=/run/larder/job/larder.toml", "--job=/run/larder/job/build.json"];
        let build = [&build[..], &["--volume=/cache", "--output=json", "--result-file=/dev/termination-log"]]
            .concat();
        let mounts = |volume: &str| {
            vec![
                packaged.mount(volume, "/cache", "rw"),
                packaged.mount("job", "/run/larder/job", "ro"),
                packaged.mount("resolv.conf", "/etc/resolv.conf", "ro"),
                packaged.mount("result", "/dev/termination-log", "rw"),
            ]
        };
        let mut options = words(&["--user=0", "--read-only", "--tmpfs=/tmp:size=64m", "--cap-drop=ALL"]);
        options.extend(words(&["--security-opt=no-new-privileges"]));
        let with = [options.clone(), mounts("cache"), vec![format!("--cap-add={CAPABILITIES}")]].concat();
        let events = succeed(&mut packaged.run(&with, &build));
        assert!(events.contains("\"event\":\"sealed\""), "{events}");
        let result: Value = serde_json::from_slice(&fs::read(packaged.at("result")).unwrap()).unwrap();
        assert!(result["digest"].is_string(), "{result}");
        succeed(larder().arg("verify").arg(packaged.at("cache")));
        let sealed = cache(&packaged.at("cache"));
        assert_eq!(sealed.content.images.len(), 1);

        // Without the capabilities the builder names the missing one. As the user of the image, without any,
        // EROFS images still work.
        let without = [options, mounts("nobody")].concat();
        let said = exits(77, &mut packaged.run(&without, &build));
        assert!(said.contains("CAP_") || said.contains("not permitted"), "{said}");
        let user = Some(larder::export::packaging::USER);
        fs::remove_dir_all(packaged.at("nobody")).unwrap();
        fs::create_dir(packaged.at("nobody")).unwrap();
        fs::set_permissions(packaged.at("result"), fs::Permissions::from_mode(0o666)).unwrap();
        fs::set_permissions(packaged.at("job/build.json"), fs::Permissions::from_mode(0o644)).unwrap();
        chown_to(&packaged.at("nobody"), user);
        let nobody = words(&[
            "--read-only",
            "--tmpfs=/tmp:size=64m",
            "--cap-drop=ALL",
            "--security-opt=no-new-privileges",
        ]);
        succeed(
            &mut packaged.run(&[nobody, mounts("nobody")].concat(), &[&build[..], &["--rootless"]].concat()),
        );
        assert_eq!(cache(&packaged.at("nobody")).content.images.len(), 1);
    });
}

fn chown_to(path: &Path, user: Option<u32>) {
    chown(path, user, user).unwrap();
}

#[case]
fn its_authorities_are_those_that_it_was_given() {
    let needs = [NEEDS, &[Need::Program("openssl")]].concat();
    isolated(&needs, || {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new(dir.path());
        authority.sign("server", "subjectAltName=IP:127.0.0.1");
        authority.sign("client", "extendedKeyUsage=clientAuth");
        let image =
            Image::builder(Format::Oci).layer(Layer::from(LayerBuilder::new().file("x", "x").gzip())).build();
        let registry = Registry::with_tls(dir.path(), &image, "team/app", "1");
        let reference = registry.reference("team/app:1");
        let config = format!(
            "[[registry.host]]\nname = \"{}\"\nclient_cert = \"/tls/client.pem\"\nclient_key = \"/tls/client.key\"\n",
            registry.host()
        );
        fs::write(dir.path().join("larder.toml"), config).unwrap();
        let build = ["--config=/tls/larder.toml", "build", "--volume=/tmp/cache", "--size=64MiB", &reference];
        let options = [
            format!("--volume={}:/tls:ro", dir.path().display()),
            "--user=0".into(),
            format!("--cap-add={CAPABILITIES}"),
            "--env=LARDER_REGISTRY__RETRIES=0".into(),
        ];
        let ours = dir.path().join("ca.pem");
        let ours = Packaged::new(&["--authorities", ours.to_str().unwrap()]);
        succeed(&mut ours.run(&options, &build));
        let said = exits(64, &mut Packaged::new(&[]).run(&options, &build));
        assert!(said.contains("certificate"), "{said}");
    });
}

/// Returns the podman options that correspond to the Deployment's pod, except mounts of files.
fn of_deployment() -> (Vec<String>, Vec<String>) {
    let deployment: Deployment = serde_json::from_value(shipped("deployment.yaml").remove(0)).unwrap();
    let pod = deployment.spec.unwrap().template.spec.unwrap();
    let (context, container) = (pod.security_context.unwrap(), &pod.containers[0]);
    let security = container.security_context.as_ref().unwrap();
    let (user, group) = (context.run_as_user.unwrap(), context.run_as_group.unwrap());
    let mut options = vec![format!("--user={user}:{group}")];
    assert_eq!(
        (security.read_only_root_filesystem, security.allow_privilege_escalation),
        (Some(true), Some(false))
    );
    options.extend(words(&["--read-only", "--read-only-tmpfs=false", "--security-opt=no-new-privileges"]));
    options.extend(
        security
            .capabilities
            .iter()
            .flat_map(|these| these.drop.iter().flatten())
            .map(|one| format!("--cap-drop={one}")),
    );
    for volume in pod.volumes.iter().flatten().filter(|volume| volume.empty_dir.is_some()) {
        let mount = container.volume_mounts.iter().flatten().find(|mount| mount.name == volume.name).unwrap();
        // The kubelet creates it this way (pkg/volume/emptydir), for fsGroup.
        options.push(format!("--tmpfs={}:mode=2777", mount.mount_path));
    }
    (options, container.args.clone().unwrap())
}

#[case]
fn it_serves_as_in_the_deployment() {
    let needs = [NEEDS, &[Need::Program("openssl"), Need::Program("curl")]].concat();
    isolated(&needs, || {
        let world = World::new();
        if world.is_real() {
            return;
        }
        let packaged = Packaged::new(&[]);
        for name in ["tls", "etc"] {
            fs::create_dir(packaged.at(name)).unwrap();
        }
        let authority = Authority::new(&packaged.at("tls"));
        authority.sign("tls", "subjectAltName=IP:127.0.0.1");
        fs::rename(packaged.at("tls/tls.pem"), packaged.at("tls/tls.crt")).unwrap();
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);

        // The shipped configuration, with the settings of an administrator.
        let team = Tenant("team-a");
        let shipped =
            fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/kubernetes/larder.toml"))
                .unwrap();
        let hash = larder_model::digest::Digest::sha256(team.token().as_bytes());
        let config = [
            ("\"0.0.0.0:8443\"", format!("\"127.0.0.1:{port}\"")),
            ("uid = \"this\"", "uid = \"here\"\nkubeconfig = \"/etc/larder/kubeconfig\"".to_owned()),
            ("\"larder:0.1.0\"", "\"larder:1\"".to_owned()),
            ("storage_class = \"\"", "storage_class = \"csi\"".to_owned()),
            ("snapshot_class = \"larder\"", "snapshot_class = \"csi\"".to_owned()),
            (
                "\ntoken_sha256 = [\"0000000000000000",
                format!("\ntoken_sha256 = [\"{}\", \"0000000000000000", hash.hex()),
            ),
        ]
        .into_iter()
        .fold(shipped, |text, (from, to)| {
            assert_eq!(text.matches(from).count(), 1, "{from}");
            text.replace(from, &to)
        });
        // The registry of the test is on loopback, which a tenant's order cannot reach by default.
        let config = config + "\n[registry]\nallow = ['127.0.0.0/8']\n";
        fs::write(packaged.at("etc/larder.toml"), config).unwrap();
        fs::write(packaged.at("etc/token"), world.fake().token(LARDER)).unwrap();
        let kubeconfig = world.fake().kubeconfig(Path::new("/etc/larder/token"), "larder");
        fs::write(packaged.at("etc/kubeconfig"), kubeconfig).unwrap();
        for name in ["tls/tls.crt", "etc/larder.toml", "etc/token", "etc/kubeconfig"] {
            fs::set_permissions(packaged.at(name), fs::Permissions::from_mode(0o644)).unwrap();
        }
        // With the modes and owners that the kubelet sets: `defaultMode` and `fsGroup` of the Deployment.
        chown(packaged.at("tls/tls.key"), None, Some(65532)).unwrap();
        fs::set_permissions(packaged.at("tls/tls.key"), fs::Permissions::from_mode(0o440)).unwrap();

        let (mut options, arguments) = of_deployment();
        options.extend([packaged.mount("etc", "/etc/larder", "ro"), packaged.mount("tls", "/tls", "ro")]);
        let log = packaged.at("log");
        let mut serve = packaged.run(&options, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        serve.stdout(fs::File::create(&log).unwrap()).stderr(fs::File::create(&log).unwrap());
        let mut daemon = Running::of(serve.spawn().unwrap());
        let ask = |method: &str, path: &str, body: &str| {
            let mut curl = Command::new("curl");
            curl.args([
                "--silent",
                "--show-error",
                "--fail-with-body",
                "--noproxy",
                "*",
                "--request",
                method,
                "--cacert",
            ]);
            curl.arg(packaged.at("tls/ca.pem")).args(["--header", "Content-Type: application/json"]);
            curl.args(["--header", &format!("X-Auth-Token: {}", team.token())]);
            if !body.is_empty() {
                curl.args(["--data", body]);
            }
            curl.arg(format!("https://127.0.0.1:{port}{path}"));
            curl
        };
        let deadline = Instant::now() + LIMIT;
        while !ask("GET", "/readyz", "").output().unwrap().status.success() {
            let said = || fs::read_to_string(&log).unwrap();
            assert!(
                !daemon.has_ended() && Instant::now() < deadline,
                "the daemon did not start:\n{}",
                said()
            );
            sleep(Duration::from_millis(100));
        }
        // A plan is a process in the container; a build is a pod.
        let image = &world.images()[0];
        let order =
            json!({"name": "api", "images": [image], "building_config": {"cluster": "here"}}).to_string();
        let plan: Value =
            serde_json::from_str(&succeed(&mut ask("POST", "/larder/v1/plan", &order))).unwrap();
        assert_eq!(plan["plan"]["images"].as_array().unwrap().len(), 1, "{plan}");
        succeed(&mut ask("POST", "/v5/imagecaches", &order));
        world.apply(&world.object("kubectl"));
        for name in ["api", "kubectl"] {
            world.phase(name, Status::Available);
        }
        daemon.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(daemon.code_within(LIMIT), Some(0), "{}", fs::read_to_string(&log).unwrap());
    });
}
