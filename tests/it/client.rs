//! `larder cache` with the daemon: over its socket as root, over TLS with a token, over TCP with keys.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::LayerBuilder;
use serde_json::Value;

use crate::harness::daemon::{Daemon, ROOMY, Tenant};
use crate::harness::filesystem::unmount;
use crate::harness::registry::Registry;
use crate::harness::{Need, exits, isolated, larder, succeed};

const NEEDS: &[Need] = &[Need::Program("docker-registry")];
const A: Tenant = Tenant("team-a");

fn image(content: &str) -> Image {
    let layer = Layer::from(LayerBuilder::new().file("etc/motd", content).gzip());
    Image::builder(Format::Oci).layer(layer).build()
}

fn cache(host: &str, arguments: &[&str]) -> Command {
    let mut command = larder();
    for variable in ["LARDER_TOKEN", "LARDER_ACCESS_KEY", "LARDER_SECRET_KEY", "LARDER_CA"] {
        command.env_remove(variable);
    }
    command.env("LARDER_HOST", host).arg("cache").args(arguments);
    command
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[case]
fn an_operator_over_the_socket() {
    isolated(NEEDS, || {
        let registry = Registry::open();
        let reference = registry.push(&image("one"), "team/app", "1");
        let daemon = Daemon::start(&[A], ROOMY);
        let socket = format!("unix://{}", daemon.config().with_file_name("larder.sock").display());
        let run = |arguments: &[&str]| daemon.explain(|| succeed(&mut cache(&socket, arguments)));

        let planned = run(&["plan", &reference]);
        assert!(planned.contains("fits") && planned.contains(&reference), "{planned}");
        let created = run(&["create", "web", &reference, "--wait", "--json"]);
        assert_eq!(json(&created)["image_cache"]["status"], "Available");
        let id = json(&created)["image_cache"]["id"].as_str().unwrap().to_owned();
        let listed = run(&["ls", "-o", "wide"]);
        assert!(
            listed.starts_with("NAME") && listed.contains("Available") && listed.contains(&id),
            "{listed}"
        );
        assert_eq!(run(&["ls", "--name", "we"]).lines().count(), 1, "--name must match whole names");
        let shown = run(&["show", "web"]);
        assert!(shown.contains("sha256:") && shown.contains("fetched") && shown.contains("1/1"), "{shown}");
        assert_eq!(json(&run(&["show", &id, "--json"]))["details"]["layers"][0]["state"], "committed");
        let told = run(&["events", "web"]);
        assert!(told.contains("ordered") && told.contains("sealed"), "{told}");
        for line in run(&["events", "web", "--json"]).lines() {
            json(line);
        }
        assert!(run(&["match", &reference]).contains("contains 1 of the images"));

        registry.push(&image("two"), "team/app", "1");
        let before = json(&run(&["show", "web", "--json"]))["details"]["digest"].clone();
        run(&["refresh", "web", "--wait"]);
        assert_ne!(json(&run(&["show", "web", "--json"]))["details"]["digest"], before);

        // A snapshot that a refresh replaced stays while it is mounted, and a deletion waits for it.
        let snapshots = |state: &str| {
            let told = json(&run(&["snapshots", "web", "--json"]));
            let found = told["snapshots"].as_array().unwrap().clone();
            found.into_iter().filter(|snapshot| snapshot[state] == true).collect::<Vec<_>>()
        };
        let [served] = &snapshots("served")[..] else { panic!("expected one served snapshot") };
        assert_eq!((&served["generation"], &served["in_use"]), (&2.into(), &false.into()));
        let mount = tempfile::tempdir().unwrap();
        let path = served["path"].as_str().unwrap();
        succeed(Command::new("mount").args(["--bind", path]).arg(mount.path()));
        run(&["refresh", "web", "--wait"]);
        let [used] = &snapshots("in_use")[..] else { panic!("expected one snapshot in use") };
        assert_eq!((&used["path"], &used["served"]), (&path.into(), &false.into()));
        assert!(run(&["snapshots", "web"]).contains("in use"));
        unmount(mount.path());
        // A plan is refused for the same reasons as a create.
        let too_big = ["plan", &reference, "--size", "500GiB"];
        let planned = daemon.explain(|| exits(64, &mut cache(&socket, &too_big)));
        assert!(planned.contains("image_cache_size"), "{planned}");

        // Each failure has the exit code of its class and a hint.
        let fails =
            |code: i32, arguments: &[&str]| daemon.explain(|| exits(code, &mut cache(&socket, arguments)));
        assert!(fails(73, &["create", "web", &reference]).contains("taken"));
        assert!(fails(64, &["create", "big", &reference, "--size", "500GiB"]).contains("image_cache_size"));
        assert!(fails(64, &["show", "nothing"]).contains("nothing"));
        assert!(fails(64, &["match", "nobody.example/has:1"]).contains("no Available image cache"));
        assert!(fails(73, &["cancel", "web"]).contains("no build to cancel"));
        let missing = registry.reference("team/app:missing");
        assert!(fails(64, &["create", "bad", &missing, "--wait"]).contains(&missing));
        assert!(fails(64, &["wait", "bad"]).contains("missing"));

        run(&["rm", "web", "bad", "--wait"]);
        assert_eq!(run(&["ls"]).lines().count(), 1);
        let nobody = exits(69, &mut cache("unix:///nowhere/larder.sock", &["ls"]));
        assert!(nobody.contains("larder serve") && nobody.contains("LARDER_HOST"), "{nobody}");
    });
}

#[case]
fn a_tenant_by_token_and_by_keys() {
    isolated(NEEDS, || {
        let registry = Registry::open();
        let reference = registry.push(&image("one"), "team/app", "1");
        let daemon = Daemon::start(&[A], ROOMY);
        let host = daemon.endpoint();
        let credentials = A.credentials();
        let text = |name: &str| credentials[name].as_str().unwrap().to_owned();
        let with_keys = |secret: &str, arguments: &[&str]| {
            let mut command = cache(&host, arguments);
            command.env("LARDER_ACCESS_KEY", text("access_key")).env("LARDER_SECRET_KEY", secret);
            command
        };
        let secret = text("secret_key");
        succeed(&mut with_keys(&secret, &["create", "web", &reference, "--wait"]));
        assert!(succeed(&mut with_keys(&secret, &["ls", "--name", "web"])).contains("Available"));
        assert!(succeed(&mut with_keys(&secret, &["match", &reference])).contains("web"));
        let mut by_token = cache(&host, &["show", "web"]);
        assert!(succeed(by_token.env("LARDER_TOKEN", A.token())).contains("Available"));

        // The name is encoded the same way for the signature and for the request, whatever it contains.
        for name in ["two words", "a+b", "é/%&=~"] {
            let none = exits(64, &mut with_keys(&secret, &["show", name]));
            assert!(none.contains("there is no image cache"), "{none}");
        }
        let denied = exits(77, &mut with_keys("wrong", &["ls"]));
        assert!(denied.contains("401 CCE.01401001") && !denied.contains("wrong\""), "{denied}");
        exits(77, &mut cache(&host, &["ls"]));
        let mut twice = with_keys(&secret, &["ls"]);
        assert!(exits(64, twice.env("LARDER_TOKEN", A.token())).contains("LARDER_TOKEN"));
    });
}

/// Returns `larder cache` as the user `nobody`, with these supplementary groups, from a copy of the program
/// that everyone can execute.
fn as_nobody(groups: &str, program: &Path, socket: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534"]);
    match groups {
        "" => command.arg("--clear-groups"),
        groups => command.args(["--groups", groups]),
    };
    command.arg(program).args(["cache", "--host", socket]).args(arguments);
    command
}

#[case]
fn users_at_the_socket() {
    isolated(&[Need::Program("setpriv")], || {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("larder");
        fs::copy(larder().get_program(), &program).unwrap();
        for path in [dir.path(), &program] {
            fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        }
        let nobody = |daemon: &Daemon, groups: &str, arguments: &[&str]| {
            let place = daemon.config().parent().unwrap().to_owned();
            fs::set_permissions(&place, Permissions::from_mode(0o711)).unwrap();
            let socket = format!("unix://{}", place.join("larder.sock").display());
            as_nobody(groups, &program, &socket, arguments)
        };
        // Members of the socket group are the tenant admin, regardless of their other groups. Other users are
        // refused.
        let daemon = Daemon::start(&[A], &format!("{ROOMY}api.socket_group = '54321'\n"));
        let order = ["create", "web", "localhost:1/nothing"];
        succeed(&mut nobody(&daemon, "54321", &order));
        let socket = format!("unix://{}", daemon.config().with_file_name("larder.sock").display());
        assert!(
            succeed(&mut cache(&socket, &["ls"])).contains("localhost:1/nothing"),
            "root must be the same tenant"
        );
        let denied = exits(77, &mut nobody(&daemon, "", &["ls"]));
        assert!(denied.contains("permission denied") && denied.contains("api.socket_group"), "{denied}");
        drop(daemon);

        // Without a socket group only root is, although the mode of the socket admits root's group.
        let daemon = Daemon::start(&[A], ROOMY);
        let denied = exits(77, &mut nobody(&daemon, "0", &["ls"]));
        assert!(denied.contains("403 CCE.01403001"), "{denied}");
        succeed(nobody(&daemon, "0", &["ls"]).env("LARDER_TOKEN", A.token()));

        // A client does not need the daemon's own file.
        succeed(Command::new("mount").args(["-t", "tmpfs", "none", "/etc"]));
        fs::create_dir("/etc/larder").unwrap();
        fs::write("/etc/larder/larder.toml", "surprise = 1\n").unwrap();
        fs::set_permissions("/etc/larder/larder.toml", Permissions::from_mode(0o600)).unwrap();
        succeed(nobody(&daemon, "0", &["ls"]).env("LARDER_TOKEN", A.token()));
        assert!(exits(64, larder().args(["config", "check"])).contains("surprise"));
    });
}
