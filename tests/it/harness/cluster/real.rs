//! A real cluster that is not under the control of the tests: what it offers, and Larder's rights in it as
//! shipped.

use std::env;
use std::fs::File;
use std::net::{IpAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Node, ResourceQuota, ServiceAccount};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
    PostParams,
};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, CustomResourceExt as _, ResourceExt as _};
use larder::config::cluster::Cluster as Section;
use larder::kubernetes::crd::ImageCache;
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};

use super::shipped;

const DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";

/// Name of the lock file. A cluster has one Larder, which owns all of its image caches.
const LOCK: &str = "larder-test-cluster.lock";

/// Waits until no other test uses the real cluster. The lock is released when the value is dropped.
pub(super) fn turn() -> Flock<File> {
    let file = File::create(env::temp_dir().join(LOCK)).unwrap();
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error).unwrap()
}

/// The cluster that `LARDER_TEST_KUBECONFIG` names.
pub(super) struct Real {
    pub(super) admin: Client,
    config: Config,
    kubeconfig: PathBuf,
}

impl Real {
    /// Returns the cluster of the environment, if it names one.
    pub(super) async fn of_environment() -> Option<Self> {
        let kubeconfig = PathBuf::from(env::var_os("LARDER_TEST_KUBECONFIG")?);
        let file = Kubeconfig::read_from(&kubeconfig).unwrap();
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
        Some(Real { admin: Client::try_from(config.clone()).unwrap(), config, kubeconfig })
    }

    /// Returns the address of this machine that its pods can reach: the one that routes to its nodes.
    pub(super) async fn address(&self) -> IpAddr {
        let nodes = Api::<Node>::all(self.admin.clone()).list(&ListParams::default()).await.unwrap();
        let addresses = nodes.items.into_iter().filter_map(|node| node.status?.addresses);
        let node = addresses
            .flatten()
            .find(|address| address.type_ == "InternalIP")
            .expect("no node has an InternalIP");
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect((node.address.as_str(), 9)).unwrap();
        socket.local_addr().unwrap().ip()
    }

    /// Returns the `[[cluster]]` section for Larder in `namespace`.
    pub(super) async fn section(&self, namespace: String) -> Section {
        let (storage_class, snapshot_class) = self.classes().await;
        let told = |name: &str, else_: &str| env::var(name).unwrap_or_else(|_| else_.to_owned());
        Section {
            namespace,
            builder_image: told("LARDER_TEST_BUILDER_IMAGE", concat!("larder:", env!("CARGO_PKG_VERSION"))),
            storage_class,
            snapshot_class,
            kubeconfig: Some(self.kubeconfig.clone()),
            ..Section::default()
        }
    }

    /// Finds a StorageClass and a VolumeSnapshotClass of one driver. Prefers the default classes.
    async fn classes(&self) -> (String, String) {
        let told =
            ["LARDER_TEST_STORAGE_CLASS", "LARDER_TEST_SNAPSHOT_CLASS"].map(|name| env::var(name).ok());
        let kind = GroupVersionKind::gvk("snapshot.storage.k8s.io", "v1", "VolumeSnapshotClass");
        let kind = ApiResource::from_gvk_with_plural(&kind, "volumesnapshotclasses");
        let snapshots = Api::<DynamicObject>::all_with(self.admin.clone(), &kind);
        let snapshots = snapshots.list(&ListParams::default()).await.unwrap().items;
        let storage = Api::<StorageClass>::all(self.admin.clone());
        let mut storage = storage.list(&ListParams::default()).await.unwrap().items;
        storage.sort_by_key(|class| class.annotations().get(DEFAULT).is_none_or(|value| value != "true"));
        let fits = |told: &Option<String>, name: String| told.as_ref().is_none_or(|told| *told == name);
        let pairs = storage.iter().flat_map(|class| snapshots.iter().map(move |snapshot| (class, snapshot)));
        let mut pairs = pairs.filter(|(class, snapshot)| {
            let one_driver = snapshot.data["driver"] == class.provisioner.as_str();
            one_driver && fits(&told[0], class.name_any()) && fits(&told[1], snapshot.name_any())
        });
        let (class, snapshot) = pairs.next().expect("no driver has a StorageClass and a VolumeSnapshotClass");
        (class.name_any(), snapshot.name_any())
    }

    /// Installs the definition of image caches, and the rights that `config/kubernetes` grants Larder in
    /// `own` and with `tenants`.
    pub(super) async fn install(&self, own: &str, tenants: &[&str]) {
        self.apply(serde_json::to_value(ImageCache::crd()).unwrap()).await;
        let objects = Api::<ImageCache>::namespaced(self.admin.clone(), own);
        // Wait until it is established.
        for _ in 0..600 {
            if objects.list(&ListParams::default()).await.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        for object in shipped("rbac.yaml") {
            self.apply(moved(object, own, own)).await;
        }
        for tenant in tenants {
            for object in shipped("tenant.yaml") {
                self.apply(moved(object, own, tenant)).await;
            }
            self.quota_is_counted(tenant).await;
        }
    }

    /// Waits until the quota of a tenant is counted. Until then the API server refuses image caches. After
    /// the first installation of the definition, the controller manager needs up to five and a half minutes.
    async fn quota_is_counted(&self, tenant: &str) {
        let quotas = Api::<ResourceQuota>::namespaced(self.admin.clone(), tenant);
        for _ in 0..3600 {
            let used = quotas.get("larder").await.unwrap().status.and_then(|status| status.used);
            if used.is_some_and(|used| used.contains_key("count/imagecaches.larder.dev")) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the quota of {tenant} is not counted within six minutes");
    }

    async fn apply(&self, object: Value) {
        let (api, object) = self.api_of(object);
        let parameters = PatchParams::apply("larder-test").force();
        api.patch(&object.name_any(), &parameters, &Patch::Apply(&object)).await.unwrap();
    }

    fn api_of(&self, object: Value) -> (Api<DynamicObject>, DynamicObject) {
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        let types = object.types.clone().unwrap();
        let kind = ApiResource::from_gvk(&GroupVersionKind::try_from(types).unwrap());
        let api = match object.namespace() {
            Some(namespace) => Api::namespaced_with(self.admin.clone(), &namespace, &kind),
            None => Api::all_with(self.admin.clone(), &kind),
        };
        (api, object)
    }

    /// Returns a client with the rights of Larder in `own`.
    pub(super) async fn larder(&self, own: &str) -> Client {
        let accounts = Api::<ServiceAccount>::namespaced(self.admin.clone(), own);
        let spec = TokenRequestSpec { expiration_seconds: Some(7200), ..TokenRequestSpec::default() };
        let request = TokenRequest { spec, ..TokenRequest::default() };
        let made = accounts.create_token_request("larder", &PostParams::default(), &request).await.unwrap();
        let token = made.status.unwrap().token;
        let mut config = self.config.clone();
        config.auth_info = AuthInfo { token: Some(token.into()), ..AuthInfo::default() };
        Client::try_from(config).unwrap()
    }

    /// Removes the objects that were installed for one test. The definition stays.
    pub(super) async fn clear(&self, own: &str, tenants: &[&str]) {
        // A failed test leaves records that no daemon processes any more.
        for namespace in tenants {
            let api = Api::<ImageCache>::namespaced(self.admin.clone(), namespace);
            for left in api.list(&ListParams::default()).await.into_iter().flat_map(|list| list.items) {
                let patch = json!({"metadata": {"finalizers": null}});
                let _ = api.patch(&left.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await;
            }
        }
        let namespaces = [own].into_iter().chain(tenants.iter().copied());
        let namespaces = namespaces
            .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
        let rights = shipped("rbac.yaml").into_iter().map(|object| moved(object, own, own));
        let rights = rights.filter(|object| object["metadata"].get("namespace").is_none());
        for object in rights.chain(namespaces) {
            let (api, object) = self.api_of(object);
            let _ = api.delete(&object.name_any(), &DeleteParams::default()).await;
        }
    }
}

/// Moves a shipped object for Larder in `own` into `namespace`. An object without a namespace gets the name
/// of Larder's.
fn moved(mut object: Value, own: &str, namespace: &str) -> Value {
    if object["metadata"].get("namespace").is_some() {
        object["metadata"]["namespace"] = json!(namespace);
    } else {
        object["metadata"]["name"] = json!(own);
        if object.get("roleRef").is_some() {
            object["roleRef"]["name"] = json!(own);
        }
    }
    // Not by index, which would add the member to objects that lack it.
    let subjects = object.get_mut("subjects").and_then(Value::as_array_mut);
    for subject in subjects.into_iter().flatten() {
        subject["namespace"] = json!(own);
    }
    object
}
