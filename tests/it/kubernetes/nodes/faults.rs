//! Nodes on which something goes wrong.

use super::*;

#[case]
fn a_claim_that_never_binds_is_reported() {
    isolated(&[], || {
        let Some(scene) = Scene::new() else { return };
        let team = scene.world.team.clone();
        // The storage class is gone, so every request waits.
        let classes = kube::Api::<k8s_openapi::api::storage::v1::StorageClass>::all(scene.world.admin());
        scene.world.wait(classes.delete("csi", &DeleteParams::default())).unwrap();
        let agent = scene.agent("node-a", "pending_timeout_minutes = 0\nkeep_minutes = 0");
        scene.pod(&team, "app", "node-a", Some("web"), "larder:1");
        let told = scene.told(&agent, &team, "app", "ImageCacheLate");
        assert!(told.contains("describe pvc"), "{told}");
        assert!(agent.attached().is_empty());
        // No pod needs it any more, and no object is left.
        scene.remove_pod(&team, "app");
        scene.nothing_left(&agent);
    });
}

#[case]
fn a_modified_volume_is_not_attached() {
    /// Modifies the snapshot in this directory.
    type Corrupt = fn(&Path);
    let corruptions: [Corrupt; 2] = [
        |stored| {
            let seal = stored.join("cache.json");
            let text = fs::read_to_string(&seal).unwrap();
            fs::write(&seal, text.replace("\"entries\": 1", "\"entries\": 2")).unwrap();
        },
        // Not the seal itself, but the content that it describes.
        |stored| {
            let mut layers = fs::read_dir(stored.join("overlay")).unwrap().map(|entry| entry.unwrap().path());
            let file = layers.find_map(|layer| Some(layer.join("diff/f-0")).filter(|file| file.exists()));
            fs::write(file.unwrap(), "another").unwrap();
        },
    ];
    isolated(&[], move || {
        for corrupt in corruptions {
            let Some(scene) = Scene::new() else { return };
            let object = scene.offered("web", 1);
            let handle = object.status.unwrap().content.unwrap().snapshot.unwrap().handle;
            corrupt(&scene.world.fake().stored(&handle).unwrap().path);
            // As config/kubernetes/node/larder.toml sets it.
            let agent = scene.agent("node-a", "verify_layers = true");
            scene.pod(&scene.world.team, "app", "node-a", Some("web"), "larder:1");
            let told = scene.told(&agent, &scene.world.team, "app", "ImageCacheFailed");
            assert!(told.contains("cannot be attached"), "{told}");
            assert!(agent.attached().is_empty());
            assert_eq!(scene.take(&agent), None);
        }
    });
}

#[case]
fn a_holder_that_is_deleted_has_a_successor() {
    isolated(&[], || {
        let Some(scene) = Scene::new() else { return };
        let agent = scene.agent("node-a", "");
        scene.pod(&scene.world.team, "app", "node-a", Some("web"), "larder:1");
        scene.attached(&agent, 1);
        let top = scene.take(&agent).unwrap();
        let view =
            crate::harness::snapshots::Mounted::new(&agent.client.prepare("container", &top, &[]).unwrap());
        for _ in 0..2 {
            let before = scene.holders().remove(0).name_any();
            let api = scene.world.api::<Pod>(VOLUMES);
            scene.world.wait(api.delete(&before, &DeleteParams::default())).unwrap();
            scene.until(&agent, "another process uses the mount", || {
                let holders = scene.holders();
                let runs = |pod: &Pod| {
                    pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
                };
                (holders.len() == 1 && holders[0].name_any() != before && runs(&holders[0])).then_some(())
            });
            assert_eq!(agent.attached().len(), 1);
            assert!(view.at("f-0").exists(), "the container must still be able to read");
        }
        assert_eq!(scene.world.fake().unplugged_disks(), 0);
    });
}

#[case]
fn two_nodes_of_which_one_is_removed() {
    isolated(&[], || {
        let Some(scene) = Scene::new() else { return };
        scene.world.add_node("node-b");
        let team = scene.world.team.clone();
        let caches = format!("caches = ['{team}/web']");
        let (one, mut two) = (scene.agent("node-a", &caches), scene.agent("node-b", &caches));
        scene.attached(&one, 1);
        scene.attached(&two, 1);
        let nodes: Vec<String> =
            scene.holders().iter().filter_map(|pod| pod.spec.as_ref()?.node_name.clone()).collect();
        assert!(nodes.contains(&"node-a".to_owned()) && nodes.contains(&"node-b".to_owned()), "{nodes:?}");
        // The machine and its node are gone. The garbage collector deletes the objects of the node, not
        // Larder.
        two.kill();
        scene.world.fake().remove_node("node-b");
        scene.until(&one, "the objects of the other node are deleted", || {
            (scene.claims().len() == 1 && scene.holders().len() == 1).then_some(())
        });
        assert_eq!(scene.holders()[0].spec.as_ref().unwrap().node_name.as_deref(), Some("node-a"));
        assert_eq!(one.attached().len(), 1);
    });
}
