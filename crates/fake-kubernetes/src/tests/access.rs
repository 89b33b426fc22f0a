//! Tests of tokens and roles (facts/kubernetes.md, 1: a named secret is read, another is 403, an absent one
//! 404, a list 403).

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::json;

use super::super::Cluster;
use super::{refused, typed};

fn cluster() -> Cluster {
    let cluster = Cluster::new();
    for object in [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "test"}}),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": {"name": "pull-secrets", "namespace": "test"},
            "rules": [
                {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["mine", "absent"], "verbs": ["get"]},
                {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["patch"]},
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": "pull-secrets", "namespace": "test"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "pull-secrets"},
            "subjects": [{"kind": "ServiceAccount", "name": "larder", "namespace": "larder"}],
        }),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mine", "namespace": "test"}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "theirs", "namespace": "test"}}),
    ] {
        cluster.install(&object);
    }
    cluster
}

#[tokio::test]
async fn roles_limit_reads_by_name() {
    let cluster = cluster();
    let client = cluster.client("system:serviceaccount:larder:larder");
    let api: Api<Secret> = Api::namespaced(client.clone(), "test");
    api.get("mine").await.unwrap();
    assert_eq!(refused(api.get("absent").await).code, 404);
    let theirs = refused(api.get("theirs").await);
    assert_eq!((theirs.code, theirs.reason.as_str()), (403, "Forbidden"));
    assert_eq!(
        theirs.message,
        "secrets \"theirs\" is forbidden: User \"system:serviceaccount:larder:larder\" cannot get resource \"secrets\" in API \
         group \"\" in the namespace \"test\""
    );
    assert_eq!(refused(api.list(&ListParams::default()).await).code, 403);
    let elsewhere: Api<Secret> = Api::namespaced(client.clone(), "default");
    assert_eq!(refused(elsewhere.get("mine").await).code, 403);
    // An apply that creates an object requires the permission to create it.
    let api: Api<ConfigMap> = Api::namespaced(client, "test");
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}});
    let apply = || async { api.patch("a", &PatchParams::apply("test"), &Patch::Apply(&map)).await };
    assert!(refused(apply().await).message.contains("cannot create resource \"configmaps\""));
    let admin: Api<ConfigMap> = Api::namespaced(cluster.admin(), "test");
    let made: ConfigMap = typed(json!({"metadata": {"name": "a"}}));
    admin.create(&PostParams::default(), &made).await.unwrap();
    apply().await.unwrap();
}

#[tokio::test]
async fn tokens_can_be_revoked() {
    let cluster = cluster();
    let token = cluster.token("system:serviceaccount:larder:larder");
    let client = Client::try_from(cluster.config(Some(&token))).unwrap();
    let api: Api<Secret> = Api::namespaced(client, "test");
    api.get("mine").await.unwrap();
    cluster.revoke(&token);
    assert_eq!(refused(api.get("mine").await).code, 401);
    let anonymous: Api<Secret> = Api::namespaced(Client::try_from(cluster.config(None)).unwrap(), "test");
    let anonymous = refused(anonymous.get("mine").await);
    assert_eq!(anonymous.code, 403);
    assert!(anonymous.message.contains("system:anonymous"), "{anonymous}");
}

#[tokio::test]
async fn a_kubeconfig_reads_its_token_from_a_file() {
    let cluster = cluster();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, cluster.token("system:serviceaccount:larder:larder")).unwrap();
    let config = Kubeconfig::from_yaml(&cluster.kubeconfig(&file, "test")).unwrap();
    let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
    let api: Api<Secret> = Api::default_namespaced(Client::try_from(config).unwrap());
    api.get("mine").await.unwrap();
    assert_eq!(refused(api.get("theirs").await).code, 403);
}
