use serde_json::{Value, json};

use super::super::objects::{Objects, node_label};
use super::super::wish::tests::{cache, named};
use super::*;
use crate::config::node::Node;

const NODE: &str = "node-a";

fn wish() -> Wish {
    let asks = named("team-a/web");
    let decided = super::super::wish::decide(&asks, &[cache("team-a", "web", &[], |_| {})], NODE, 9);
    decided.wishes.into_iter().next().unwrap()
}

fn claim(wish: &Wish, change: impl FnOnce(&mut Value)) -> Option<Arc<PersistentVolumeClaim>> {
    let settings = Node::default();
    let mut claim = Objects { settings: &settings, node: (NODE, "uid") }.claim(wish);
    claim["status"] = json!({"phase": "Pending"});
    change(&mut claim);
    Some(Arc::new(serde_json::from_value(claim).unwrap()))
}

fn bound(claim: &mut Value) {
    claim["status"]["phase"] = json!("Bound");
    claim["spec"]["volumeName"] = json!("pv");
}

fn pod(wish: &Wish, uid: &str, change: impl FnOnce(&mut Value)) -> Arc<Pod> {
    let settings = Node::default();
    let mut pod = Objects { settings: &settings, node: (NODE, "uid") }.holder(wish, &[]);
    pod["metadata"]["uid"] = json!(uid);
    pod["metadata"]["name"] = json!(uid);
    pod["status"] = json!({"phase": "Pending"});
    change(&mut pod);
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn running(pod: &mut Value) {
    pod["spec"]["nodeName"] = json!(NODE);
    pod["status"]["phase"] = json!("Running");
}

fn deleting(object: &mut Value) {
    object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
}

#[test]
fn the_way_in() {
    let wish = wish();
    let mut holding = Holding::default();
    let step = |holding: &Holding| holding.step(Some(&wish), NODE);
    let late = Wish { offered: Err("not yet".into()), ..wish.clone() };
    assert_eq!(holding.step(Some(&late), NODE), Step::Wait("not yet".into()));
    assert_eq!(step(&holding), Step::MakeClaim);
    holding.claim = claim(&wish, |_| {});
    assert_eq!(step(&holding), Step::MakeHolder);
    holding.pods = vec![pod(&wish, "1", |_| {})];
    assert!(matches!(step(&holding), Step::Wait(_)));
    // The kubelet says that it runs, but the claim was not seen to be bound yet.
    holding.pods = vec![pod(&wish, "1", running)];
    assert!(matches!(step(&holding), Step::Wait(_)));
    holding.claim = claim(&wish, bound);
    let attach =
        |uid: &str| Step::Attach { uid: uid.into(), volume: "pv".into(), seal: wish.seal.clone().unwrap() };
    assert_eq!(step(&holding), attach("1"));
    // After a restart it is looked at once more; then nothing is left to do.
    holding.attached = true;
    assert_eq!(step(&holding), attach("1"));
    holding.from = Some("1".into());
    assert_eq!(step(&holding), Step::Held);
}

#[test]
fn a_holder_that_goes_is_followed_by_another() {
    let wish = wish();
    let step = |pods: Vec<Arc<Pod>>| {
        let holding = Holding { claim: claim(&wish, bound), pods, attached: true, from: Some("1".into()) };
        holding.step(Some(&wish), NODE)
    };
    let going = || {
        pod(&wish, "1", |pod| {
            running(pod);
            deleting(pod)
        })
    };
    assert_eq!(step(vec![going()]), Step::MakeHolder);
    assert_eq!(step(vec![going(), pod(&wish, "2", |_| {})]), Step::Held);
    assert!(matches!(step(vec![going(), pod(&wish, "2", running)]), Step::Attach { uid, .. } if uid == "2"));
    let ended = pod(&wish, "3", |pod| pod["status"]["phase"] = json!("Failed"));
    assert_eq!(step(vec![ended]), Step::DeleteHolder("3".into()));
    // Of the same name for the same past, of another for another.
    let settings = Node::default();
    let objects = Objects { settings: &settings, node: (NODE, "uid") };
    let name =
        |before: &[&Pod]| objects.holder(&wish, before)["metadata"]["name"].as_str().unwrap().to_owned();
    let (one, two) = (pod(&wish, "1", |_| {}), pod(&wish, "2", |_| {}));
    assert_eq!(name(&[&one, &two]), name(&[&two, &one]));
    assert_ne!(name(&[]), name(&[&one]));
}

#[test]
fn the_way_out() {
    let wish = wish();
    let mut holding = Holding {
        claim: claim(&wish, bound),
        pods: vec![pod(&wish, "1", running)],
        attached: true,
        from: None,
    };
    let step = |holding: &Holding| holding.step(None, NODE);
    assert_eq!(step(&holding), Step::Detach);
    holding.attached = false;
    assert_eq!(step(&holding), Step::DeleteHolder("1".into()));
    holding.pods = vec![pod(&wish, "1", deleting)];
    assert!(matches!(step(&holding), Step::Wait(_)));
    holding.pods.clear();
    assert_eq!(step(&holding), Step::DeleteClaim);
    holding.claim = claim(&wish, deleting);
    assert!(matches!(step(&holding), Step::Wait(_)));
    holding.claim = None;
    assert_eq!(step(&holding), Step::Gone);
    // Wanted again in the middle: what is being deleted is waited for.
    holding.claim = claim(&wish, deleting);
    holding.pods = vec![pod(&wish, "1", running)];
    assert_eq!(holding.step(Some(&wish), NODE), Step::DeleteHolder("1".into()));
    holding.pods.clear();
    assert!(matches!(holding.step(Some(&wish), NODE), Step::Wait(_)));
}

#[test]
fn another_claim_is_not_used() {
    let wish = wish();
    type Change = fn(&mut Value);
    let changes: [Change; 4] = [
        // As API servers drop sources: bound, and empty.
        |claim| drop(claim["spec"].as_object_mut().unwrap().remove("dataSource")),
        |claim| claim["spec"]["dataSource"]["name"] = json!("another"),
        |claim| claim["spec"]["dataSource"]["kind"] = json!("PersistentVolumeClaim"),
        |claim| claim["metadata"]["annotations"]["larder.dev/node"] = json!("node-b"),
    ];
    for change in changes {
        let claim = claim(&wish, |claim| {
            bound(claim);
            change(claim);
        });
        let holding = Holding { claim, pods: vec![pod(&wish, "1", running)], ..Holding::default() };
        assert!(
            matches!(holding.step(Some(&wish), NODE), Step::Wait(why) if why.contains("not what was asked"))
        );
    }
    // Nor is a pod of the same labels on another node.
    let elsewhere = pod(&wish, "1", |pod| {
        running(pod);
        pod["spec"]["nodeName"] = json!("node-b")
    });
    let holding = Holding { claim: claim(&wish, bound), pods: vec![elsewhere], ..Holding::default() };
    assert!(matches!(holding.step(Some(&wish), NODE), Step::Wait(_)));
}

#[test]
fn names_fit() {
    let wish = wish();
    assert_eq!(node_label(&"n".repeat(253)).len(), 10);
    assert!(wish.claim.len() <= 63, "{}", wish.claim);
    let volume = crate::caches::volumes::VolumeId { generation: u32::MAX, ..wish.volume.clone() };
    assert!(super::super::objects::claim_name(&volume, NODE).len() <= 63);
}
