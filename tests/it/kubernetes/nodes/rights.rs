//! Checks that agents use all rights that `config/kubernetes/node` grants, and need no others.

use std::collections::BTreeSet;

use super::Scene;
use crate::harness::agent::AGENT;
use crate::harness::cluster::shipped;
use crate::harness::isolated;

#[case]
fn every_right_is_used_and_none_is_missing() {
    isolated(&[], || {
        let Some(scene) = Scene::new() else { return };
        let team = scene.world.team.clone();
        let agent = scene.agent("node-a", "keep_minutes = 0");
        scene.pod(&team, "app", "node-a", Some("web"), "larder:1");
        scene.told(&agent, &team, "app", "ImageCacheAttached");
        scene.remove_pod(&team, "app");
        scene.nothing_left(&agent);
        let mut given = BTreeSet::new();
        for object in shipped("node/rbac.yaml") {
            // The rest are rights of the daemon.
            if object["metadata"]["name"] != "larder-node" {
                continue;
            }
            for rule in object["rules"].as_array().into_iter().flatten() {
                for resource in rule["resources"].as_array().unwrap() {
                    for verb in rule["verbs"].as_array().unwrap() {
                        given.insert((
                            resource.as_str().unwrap().to_owned(),
                            verb.as_str().unwrap().to_owned(),
                        ));
                    }
                }
            }
        }
        let seen = scene.world.fake().seen();
        let mine = seen.iter().filter(|seen| seen.user == AGENT);
        let used: BTreeSet<_> = mine.map(|seen| (seen.resource.clone(), seen.verb.to_owned())).collect();
        let missing: Vec<_> = used.difference(&given).collect();
        assert!(missing.is_empty(), "missing rights: {missing:?}");
        let unused: Vec<_> = given.difference(&used).collect();
        assert!(unused.is_empty(), "unused rights: {unused:?}");
    });
}
