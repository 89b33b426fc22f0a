use serde_json::{Value, json};

use super::super::desired::tests::{cache, named};
use super::super::labels::node_label;
use super::super::objects::Objects;
use super::*;
use crate::config::node::Node;

const NODE: &str = "node-a";

fn desired() -> DesiredVolume {
    let requests = named("team-a/web");
    let decision = super::super::desired::decide(&requests, &[cache("team-a", "web", &[], |_| {})], NODE, 9);
    decision.volumes.into_iter().next().unwrap()
}

fn claim(desired: &DesiredVolume, change: impl FnOnce(&mut Value)) -> Option<Arc<PersistentVolumeClaim>> {
    let settings = Node::default();
    let mut claim = Objects { settings: &settings, node: (NODE, "uid") }.claim(desired);
    claim["status"] = json!({"phase": "Pending"});
    change(&mut claim);
    Some(Arc::new(serde_json::from_value(claim).unwrap()))
}

fn bound(claim: &mut Value) {
    claim["status"]["phase"] = json!("Bound");
    claim["spec"]["volumeName"] = json!("pv");
}

fn pod(desired: &DesiredVolume, uid: &str, change: impl FnOnce(&mut Value)) -> Arc<Pod> {
    let settings = Node::default();
    let mut pod = Objects { settings: &settings, node: (NODE, "uid") }.holder(desired, &[]);
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
fn steps_until_attached() {
    let desired = desired();
    let mut observed = ObservedVolume::default();
    let step = |observed: &ObservedVolume| observed.step(Some(&desired), NODE);
    let late = DesiredVolume { offered: Err("not yet".into()), ..desired.clone() };
    assert_eq!(observed.step(Some(&late), NODE), Step::Wait("not yet".into()));
    assert_eq!(step(&observed), Step::MakeClaim);
    observed.claim = claim(&desired, |_| {});
    assert_eq!(step(&observed), Step::MakeHolder);
    observed.pods = vec![pod(&desired, "1", |_| {})];
    assert!(matches!(step(&observed), Step::Wait(_)));
    // The kubelet reports that the pod runs, but the claim is not seen as bound yet.
    observed.pods = vec![pod(&desired, "1", running)];
    assert!(matches!(step(&observed), Step::Wait(_)));
    observed.claim = claim(&desired, bound);
    let attach = |uid: &str| Step::Attach {
        uid: uid.into(),
        volume: "pv".into(),
        seal: desired.seal.clone().unwrap(),
    };
    assert_eq!(step(&observed), attach("1"));
    // After a restart the mount is verified once more; then nothing is left to do.
    observed.attached = true;
    assert_eq!(step(&observed), attach("1"));
    observed.from = Some("1".into());
    assert_eq!(step(&observed), Step::Held);
}

#[test]
fn a_holder_that_goes_is_followed_by_another() {
    let desired = desired();
    let step = |pods: Vec<Arc<Pod>>| {
        let observed =
            ObservedVolume { claim: claim(&desired, bound), pods, attached: true, from: Some("1".into()) };
        observed.step(Some(&desired), NODE)
    };
    let going = || {
        pod(&desired, "1", |pod| {
            running(pod);
            deleting(pod)
        })
    };
    assert_eq!(step(vec![going()]), Step::MakeHolder);
    assert_eq!(step(vec![going(), pod(&desired, "2", |_| {})]), Step::Held);
    assert!(
        matches!(step(vec![going(), pod(&desired, "2", running)]), Step::Attach { uid, .. } if uid == "2")
    );
    let ended = pod(&desired, "3", |pod| pod["status"]["phase"] = json!("Failed"));
    assert_eq!(step(vec![ended]), Step::DeleteHolder("3".into()));
    // The name is the same for the same predecessors, and different for others.
    let settings = Node::default();
    let objects = Objects { settings: &settings, node: (NODE, "uid") };
    let name =
        |before: &[&Pod]| objects.holder(&desired, before)["metadata"]["name"].as_str().unwrap().to_owned();
    let (one, two) = (pod(&desired, "1", |_| {}), pod(&desired, "2", |_| {}));
    assert_eq!(name(&[&one, &two]), name(&[&two, &one]));
    assert_ne!(name(&[]), name(&[&one]));
}

#[test]
fn steps_until_gone() {
    let desired = desired();
    let mut observed = ObservedVolume {
        claim: claim(&desired, bound),
        pods: vec![pod(&desired, "1", running)],
        attached: true,
        from: None,
    };
    let step = |observed: &ObservedVolume| observed.step(None, NODE);
    assert_eq!(step(&observed), Step::Detach);
    observed.attached = false;
    assert_eq!(step(&observed), Step::DeleteHolder("1".into()));
    observed.pods = vec![pod(&desired, "1", deleting)];
    assert!(matches!(step(&observed), Step::Wait(_)));
    observed.pods.clear();
    assert_eq!(step(&observed), Step::DeleteClaim);
    observed.claim = claim(&desired, deleting);
    assert!(matches!(step(&observed), Step::Wait(_)));
    observed.claim = None;
    assert_eq!(step(&observed), Step::Gone);
    // The volume is wanted again in the meantime: the step waits for the deletion.
    observed.claim = claim(&desired, deleting);
    observed.pods = vec![pod(&desired, "1", running)];
    assert_eq!(observed.step(Some(&desired), NODE), Step::DeleteHolder("1".into()));
    observed.pods.clear();
    assert!(matches!(observed.step(Some(&desired), NODE), Step::Wait(_)));
}

#[test]
fn another_claim_is_not_used() {
    let desired = desired();
    type Change = fn(&mut Value);
    let changes: [Change; 4] = [
        // API servers can drop the source: the claim is bound, and empty.
        |claim| drop(claim["spec"].as_object_mut().unwrap().remove("dataSource")),
        |claim| claim["spec"]["dataSource"]["name"] = json!("another"),
        |claim| claim["spec"]["dataSource"]["kind"] = json!("PersistentVolumeClaim"),
        |claim| claim["metadata"]["annotations"]["larder.dev/node"] = json!("node-b"),
    ];
    for change in changes {
        let claim = claim(&desired, |claim| {
            bound(claim);
            change(claim);
        });
        let observed =
            ObservedVolume { claim, pods: vec![pod(&desired, "1", running)], ..ObservedVolume::default() };
        assert!(
            matches!(observed.step(Some(&desired), NODE), Step::Wait(why) if why.contains("is not restored from"))
        );
    }
    // A pod of another node with the same labels is not used either.
    let elsewhere = pod(&desired, "1", |pod| {
        running(pod);
        pod["spec"]["nodeName"] = json!("node-b")
    });
    let observed =
        ObservedVolume { claim: claim(&desired, bound), pods: vec![elsewhere], ..ObservedVolume::default() };
    assert!(matches!(observed.step(Some(&desired), NODE), Step::Wait(_)));
}

#[test]
fn names_fit() {
    let desired = desired();
    assert_eq!(node_label(&"n".repeat(253)).len(), 10);
    assert!(desired.claim.len() <= 63, "{}", desired.claim);
    let volume = crate::caches::volumes::VolumeId { generation: u32::MAX, ..desired.volume.clone() };
    assert!(super::super::labels::claim_name(&volume, NODE).len() <= 63);
}
