//! The agent with a containerd that the operator configured.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use larder_model::runtime::Containerd as DefaultPaths;
use nix::mount::{MsFlags, mount};

use super::Scene;
use crate::harness::containerd::Containerd;
use crate::harness::{Need, cri, isolated, succeed};

/// Starts a containerd at the path that the DaemonSet mounts, with the agent's snapshotter.
fn start_at_default_path(snapshotter: &Path) -> Containerd {
    let socket = Path::new(DefaultPaths::ADDRESS);
    let parent = socket.parent().unwrap();
    fs::create_dir_all(parent).unwrap();
    mount(Some("test"), parent, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    let containerd = Containerd::start_with_snapshotter(snapshotter, "none");
    symlink(containerd.socket(), socket).unwrap();
    containerd
}

#[case]
fn images_that_need_a_disk_go_with_it() {
    isolated(&[Need::Program("containerd"), Need::Program("ctr")], || {
        let Some(scene) = Scene::new() else { return };
        let agent = scene.agent("node-a", "keep_minutes = 0");
        scene.until(&agent, "the snapshotter answers", || agent.client.list(&[]).ok());
        let containerd = start_at_default_path(&agent.at("socket"));
        let images = || succeed(&mut containerd.k8s(&["images", "ls", "--quiet"]));
        scene.pod(&scene.world.team, "app", "node-a", Some("web"), "larder:1");
        scene.told(&agent, &scene.world.team, "app", "ImageCacheAttached");
        let reference = scene.world.served.references().remove(0);
        cri::pull(&containerd.socket(), &reference).unwrap();
        assert!(images().contains(&reference));
        let layers = scene.chains().len();
        assert_eq!(agent.client.list(&["labels.\"larder.dev/on-volume\"==yes"]).unwrap().len(), layers);
        scene.remove_pod(&scene.world.team, "app");
        scene.nothing_left(&agent);
        assert_eq!(images(), "", "{}", agent.log());
        assert!(agent.client.list(&[]).unwrap().is_empty());
    });
}
