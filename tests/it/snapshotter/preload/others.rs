//! Records of other clients, and caches that share images.

use std::collections::HashMap;

use larder::node::grpc;
use larder_containerd_api::services::images::v1 as api;
use larder_containerd_api::services::images::v1::images_client::ImagesClient;
use larder_containerd_api::types::Descriptor;
use larder_model::job::LayerFormat;
use tokio::runtime::Runtime;
use tonic::Request;

use super::super::containers::{NEEDS, Node, SIZE, image};
use super::Sealed;
use crate::harness::served::Served;
use crate::harness::{isolated, succeed};

/// Creates a record as another client.
fn record(node: &Node, name: &str, target: Descriptor) {
    let mut client = ImagesClient::with_origin(grpc::channel(node.containerd.socket()), grpc::origin());
    let image = api::Image { name: name.into(), target: Some(target), ..Default::default() };
    let mut request = Request::new(api::CreateImageRequest { image: Some(image), ..Default::default() });
    request.metadata_mut().insert("containerd-namespace", "k8s.io".parse().unwrap());
    Runtime::new().unwrap().block_on(client.create(request)).unwrap();
}

#[case]
fn records_of_others_stay() {
    isolated(&NEEDS, || {
        let sealed =
            Sealed::new(LayerFormat::Overlay, [image("cached", 1), image("second", 1)], |_| Vec::new());
        let node = Node::start_with_sandbox("none");
        let at = node.snapshotter.attach(&sealed.volume, "v");
        let [first, second] = &sealed.references[..] else { panic!() };
        let elsewhere = Descriptor {
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            digest: format!("sha256:{}", "1".repeat(64)),
            size: 1,
            annotations: HashMap::new(),
        };
        record(&node, first, elsewhere.clone());
        let said = succeed(&mut node.preload(&at));
        let skipped: Vec<&str> = said.lines().filter(|line| line.contains("skipped")).collect();
        assert_eq!(skipped.len(), 1, "{said}");
        assert!(skipped[0].starts_with(first.as_str()) && skipped[0].contains(&elsewhere.digest), "{said}");
        // The image is still available by its ID.
        let id = sealed.image(0).config.digest.to_string();
        assert_eq!(node.printed(&id, "cat /file-0"), "cached 0\n");

        // Another name for a preloaded image, with its labels; and a record as a pull creates it, which needs
        // the ID.
        let copy = format!("{}/copy:1", sealed.host());
        succeed(&mut node.containerd.k8s(&["images", "tag", second, &copy]));
        let manifest = &sealed.image(1).manifest;
        let pulled = Descriptor {
            digest: manifest.digest.to_string(),
            size: i64::try_from(manifest.bytes.len()).unwrap(),
            ..elsewhere
        };
        record(&node, "pulled:1", pulled);
        let again = succeed(&mut node.preload(&at));
        assert!(!again.contains(": registered\n"), "{again}");
        let said = succeed(&mut node.forget_cache(&at));
        let id = sealed.image(1).config.digest.to_string();
        assert!(said.contains(&format!("{id}: kept")), "{said}");
        let mut left = vec![first.clone(), copy.clone(), "pulled:1".into(), id];
        left.sort();
        assert_eq!(node.images(), left);
        assert_eq!(node.printed(&copy, "cat /file-0"), "second 0\n");
        // The remaining records are not Larder's, and another run keeps them.
        assert_eq!(succeed(&mut node.forget_cache(&at)), "");
        assert_eq!(node.images(), left);
    });
}

#[case]
fn caches_that_share_an_image() {
    isolated(&NEEDS, || {
        let served = Served::new([image("shared", 2), image("alone", 1)]);
        let node = Node::start_with_sandbox("none");
        let references = served.references();
        let mut places = Vec::new();
        for (name, all) in [("a", true), ("b", false)] {
            let volume = served.beside(name);
            let build = served.build(&volume, SIZE);
            let mut command = std::process::Command::new(build.get_program());
            command.args(build.get_args().filter(|word| all || *word != references[1].as_str()));
            succeed(&mut command);
            places.push(node.snapshotter.attach(&volume, name));
        }
        succeed(&mut node.preload(&places[0]));
        let both = node.images();
        succeed(&mut node.preload(&places[1]));
        assert_eq!(node.images(), both);
        let said = succeed(&mut node.forget_cache(&places[0]));
        assert_eq!(said.lines().filter(|line| line.contains("kept")).count(), 3, "{said}");
        assert_eq!(said.lines().filter(|line| line.contains("removed")).count(), 3, "{said}");
        node.snapshotter.detach(&places[0]);
        assert_eq!(node.printed(&references[0], "cat /file-0 /file-1"), "shared 0\nshared 1\n");
        succeed(&mut node.forget_cache(&places[1]));
        assert!(node.images().is_empty() && node.content().is_empty());
        node.until_nothing_is_left();
        node.snapshotter.detach(&places[1]);
    });
}
