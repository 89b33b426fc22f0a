//! Tests the harness for real clusters on a fake cluster: it detects what the tests need, Larder has the
//! shipped rights and a token of its ServiceAccount, and all objects are removed at the end.

use std::{env, fs};

use larder_fake_kubernetes::{Cluster, Node};
use serde_json::Value;

#[case]
fn the_same_tests_on_a_cluster_that_is_named() {
    const KUBECONFIG: &str = "LARDER_TEST_KUBECONFIG";
    if env::var_os(KUBECONFIG).is_some() {
        return;
    }
    let cluster = Cluster::new();
    cluster.install_storage("Delete");
    cluster.add_node(Node {
        name: "node-a".to_owned(),
        labels: Vec::new(),
        program: env!("CARGO_BIN_EXE_larder").into(),
        images: None,
        environment: vec![("PATH".into(), "/usr/bin:/bin".into())],
    });
    let dir = tempfile::tempdir().unwrap();
    let (token, kubeconfig) = (dir.path().join("token"), dir.path().join("kubeconfig"));
    fs::write(&token, cluster.admin_token()).unwrap();
    fs::write(&kubeconfig, cluster.kubeconfig(&token, "default")).unwrap();
    let tests =
        ["kubernetes::builds::ordered_by_the_api", "kubernetes::orders::a_snapshot_is_shared_and_unshared"];
    let mut printed = String::new();
    for test in tests {
        let output =
            larder_testing::runner::command(test).unwrap().env(KUBECONFIG, &kubeconfig).output().unwrap();
        printed += &String::from_utf8_lossy(&output.stdout);
        printed += &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{printed}");
    }
    for (group, plural) in [
        ("larder.dev", "imagecaches"),
        ("rbac.authorization.k8s.io", "clusterroles"),
        ("snapshot.storage.k8s.io", "volumesnapshotcontents"),
    ] {
        assert_eq!(cluster.peek_all(group, plural, ""), Vec::<Value>::new(), "{printed}");
    }
}
