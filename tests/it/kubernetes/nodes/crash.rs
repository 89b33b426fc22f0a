//! Agents that are killed at every step, and API servers that fail their requests.

use larder_fake_kubernetes::{Effect, Fault, RequestMatcher};

use super::Scene;
use crate::harness::agent::AGENT;
use crate::harness::isolated;

/// Returns the number of requests of agents that changed an object, except events.
fn changes(scene: &Scene) -> usize {
    let seen = scene.world.fake().seen();
    let writes = ["create", "update", "patch", "delete"];
    seen.iter()
        .filter(|seen| seen.user == AGENT && writes.contains(&seen.verb) && seen.resource != "events")
        .count()
}

#[case]
fn killed_at_every_step() {
    isolated(&[], || {
        let Some(scene) = Scene::new() else { return };
        let team = scene.world.team.clone();
        // Attaching creates the claim, the holder and the mount; detaching deletes the holder and the claim.
        // Kill after each change.
        for kill in 0..6_usize {
            let before = changes(&scene);
            let mut agent = scene.agent("node-a", "keep_minutes = 0");
            let mut killed = false;
            scene.pod(&team, "app", "node-a", Some("web"), "larder:1");
            scene.until(&agent, "it is attached, or killed", || {
                let now = changes(&scene) - before;
                (now > kill || !agent.attached().is_empty()).then_some(())
            });
            if changes(&scene) - before > kill || kill > 1 {
                agent.kill();
                agent.restart();
                killed = true;
            }
            scene.attached(&agent, 1);
            scene.until(&agent, "the snapshotter serves the layers", || scene.take(&agent));
            scene.remove_pod(&team, "app");
            let before = changes(&scene);
            scene.until(&agent, "it is being removed", || {
                let now = changes(&scene) - before;
                (now >= kill.min(2) && (kill > 2 || agent.attached().is_empty()) || scene.claims().is_empty())
                    .then_some(())
            });
            agent.kill();
            agent.restart();
            scene.nothing_left(&agent);
            assert!(killed || kill == 0, "{kill}");
        }
    });
}

/// After a reboot nothing is mounted, records are left, and the kubelet mounts again for the same pods.
#[case]
fn after_a_boot_it_is_attached_again() {
    isolated(&[], || {
        let Some(scene) = Scene::new() else { return };
        let caches = format!("caches = ['{}/web']", scene.world.team);
        let mut agent = scene.agent("node-a", &caches);
        scene.attached(&agent, 1);
        agent.kill();
        for at in agent.attached() {
            nix::mount::umount2(&at, nix::mount::MntFlags::MNT_DETACH).unwrap();
        }
        agent.restart();
        scene.attached(&agent, 1);
        scene.until(&agent, "the snapshotter serves the layers", || scene.take(&agent));
        // Killed during a release, and needed again.
        agent.kill();
        for entry in std::fs::read_dir(agent.at("state/attached")).unwrap() {
            let path = entry.unwrap().path();
            let mut record: serde_json::Value =
                serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            record["leaving"] = true.into();
            std::fs::write(&path, record.to_string()).unwrap();
        }
        agent.restart();
        scene.until(&agent, "the snapshotter serves the layers again", || scene.take(&agent));
        assert_eq!(agent.attached().len(), 1);
    });
}

#[case]
fn a_failing_api_server_is_retried() {
    isolated(&[], || {
        let Some(scene) = Scene::new() else { return };
        let team = scene.world.team.clone();
        for harm in [Effect::Broken, Effect::Busy(1), Effect::NoAnswer, Effect::Refused, Effect::Unauthorized]
        {
            for after in 0..10 {
                let meets = RequestMatcher { user: AGENT.into(), ..RequestMatcher::default() };
                scene.world.fake().fault(Fault { meets, harm: harm.clone(), after: after * 3, times: 1 });
            }
            let agent = scene.agent("node-a", "keep_minutes = 0");
            scene.pod(&team, "app", "node-a", Some("web"), "larder:1");
            scene.attached(&agent, 1);
            scene.world.fake().cut_watches();
            scene.remove_pod(&team, "app");
            scene.world.fake().expire_watches();
            scene.nothing_left(&agent);
            scene.world.fake().heal();
        }
    });
}
