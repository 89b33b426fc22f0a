//! `larder cache` against the daemon: over its socket as root, over TLS with a token, over TCP with keys.

use std::process::Command;

use larder::testing::image::{Format, Image, Layer};
use larder::testing::layer::LayerBuilder;
use serde_json::Value;

use crate::harness::daemon::{Daemon, ROOMY, Tenant};
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

#[test]
fn an_operator_over_the_socket() {
    isolated(NEEDS, || {
        let registry = Registry::open();
        let reference = registry.push(&image("one"), "team/app", "1");
        let daemon = Daemon::start(&[A], ROOMY);
        let socket = format!("unix://{}", daemon.config().with_file_name("larder.sock").display());
        let run = |arguments: &[&str]| daemon.explain(|| succeed(&mut cache(&socket, arguments)));

        let planned = run(&["plan", "web", &reference]);
        assert!(planned.contains("fits") && planned.contains(&reference), "{planned}");
        let created = run(&["create", "web", &reference, "--wait", "--json"]);
        assert_eq!(json(&created)["image_cache"]["status"], "Available");
        let id = json(&created)["image_cache"]["id"].as_str().unwrap().to_owned();
        let listed = run(&["ls"]);
        assert!(
            listed.starts_with("NAME") && listed.contains("Available") && listed.contains(&id),
            "{listed}"
        );
        assert_eq!(run(&["ls", "--name", "we"]).lines().count(), 1, "names match whole");
        let shown = run(&["show", "web"]);
        assert!(shown.contains("sha256:") && shown.contains("fetched") && shown.contains("1/1"), "{shown}");
        assert_eq!(json(&run(&["show", &id, "--json"]))["details"]["layers"][0]["state"], "committed");
        let told = run(&["events", "web"]);
        assert!(told.contains("ordered") && told.contains("sealed"), "{told}");
        for line in run(&["events", "web", "--json"]).lines() {
            json(line);
        }
        assert!(run(&["match", &reference]).contains("holds 1 of the images"));

        registry.push(&image("two"), "team/app", "1");
        let before = json(&run(&["show", "web", "--json"]))["details"]["digest"].clone();
        run(&["refresh", "web", "--wait"]);
        assert_ne!(json(&run(&["show", "web", "--json"]))["details"]["digest"], before);

        // What a refresh replaced stays while somebody has it mounted, and a deletion waits for it.
        let snapshots = |state: &str| {
            let told = json(&run(&["snapshots", "web", "--json"]));
            let found = told["snapshots"].as_array().unwrap().clone();
            found.into_iter().filter(|snapshot| snapshot[state] == true).collect::<Vec<_>>()
        };
        let [served] = &snapshots("served")[..] else { panic!("one is served") };
        assert_eq!((&served["generation"], &served["in_use"]), (&2.into(), &false.into()));
        let mount = tempfile::tempdir().unwrap();
        let path = served["path"].as_str().unwrap();
        succeed(Command::new("mount").args(["--bind", path]).arg(mount.path()));
        run(&["refresh", "web", "--wait"]);
        let [used] = &snapshots("in_use")[..] else { panic!("one is in use") };
        assert_eq!((&used["path"], &used["served"]), (&path.into(), &false.into()));
        assert!(run(&["snapshots", "web"]).contains("in use"));
        succeed(Command::new("umount").arg(mount.path()));

        // What goes wrong has the exit code of its class, and says what to do.
        let fails =
            |code: i32, arguments: &[&str]| daemon.explain(|| exits(code, &mut cache(&socket, arguments)));
        assert!(fails(73, &["create", "web", &reference]).contains("taken"));
        assert!(fails(64, &["create", "big", &reference, "--size", "500"]).contains("image_cache_size"));
        assert!(fails(64, &["show", "nothing"]).contains("nothing"));
        assert!(fails(64, &["match", "nobody.example/has:1"]).contains("no Available one"));
        assert!(fails(73, &["cancel", "web"]).contains("nothing to cancel"));
        let missing = registry.reference("team/app:missing");
        assert!(fails(64, &["create", "bad", &missing, "--wait"]).contains(&missing));
        assert!(fails(64, &["wait", "bad"]).contains("missing"));

        run(&["rm", "web", "bad", "--wait"]);
        assert_eq!(run(&["ls"]).lines().count(), 1);
        let nobody = exits(69, &mut cache("unix:///nowhere/larder.sock", &["ls"]));
        assert!(nobody.contains("larder serve") && nobody.contains("LARDER_HOST"), "{nobody}");
    });
}

#[test]
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

        let denied = exits(77, &mut with_keys("wrong", &["ls"]));
        assert!(denied.contains("401 CCE.01401001") && !denied.contains("wrong\""), "{denied}");
        exits(77, &mut cache(&host, &["ls"]));
        let mut twice = with_keys(&secret, &["ls"]);
        assert!(exits(64, twice.env("LARDER_TOKEN", A.token())).contains("LARDER_TOKEN"));
    });
}
