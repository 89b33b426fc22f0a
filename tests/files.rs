//! Checks `config/kubernetes`: each document is valid for its Kubernetes type, and consistent with the others
//! and with the program.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "files/found.rs"]
mod found;
#[path = "files/monitors.rs"]
mod monitors;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::admissionregistration::v1alpha1::{
    MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Namespace, ResourceQuota, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{
    ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use larder::caches::volumes::VolumeId;
use larder::config::Config;
use larder::config::cluster::{Cluster, Runner, kubernetes};
use larder::config::node::Node;
use larder::export::packaging;
use larder::kubernetes::names::{MANAGER, Names};
use larder_model::address_range::AddressRange;
use larder_model::runtime::Containerd;
use larder_registry::address::{LINK_LOCAL, METADATA};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use monitors::{PodMonitor, PrometheusRule, ServiceMonitor};

/// Namespaces of agents, and of the objects that they create.
const NODES: [&str; 2] = ["larder-nodes", "larder-volumes"];

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config/kubernetes")
}

/// The fields of a kustomization.yaml (v1beta1) that the shipped ones use.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Kustomization {
    api_version: String,
    kind: String,
    resources: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    config_map_generator: Vec<Generator>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Generator {
    name: String,
    namespace: String,
    files: Vec<String>,
}

/// A document and its file.
#[derive(Debug)]
struct Document {
    file: String,
    value: Value,
}

impl Document {
    fn kind(&self) -> &str {
        self.value["kind"].as_str().unwrap()
    }

    fn name(&self) -> &str {
        self.value["metadata"]["name"].as_str().unwrap()
    }

    fn namespace(&self) -> Option<&str> {
        self.value["metadata"]["namespace"].as_str()
    }

    fn typed<T: DeserializeOwned>(&self) -> T {
        serde_json::from_value(self.value.clone()).unwrap_or_else(|error| panic!("{}: {error}", self.file))
    }
}

fn files(below: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
    found.sort_unstable();
}

/// Returns all documents of all YAML files.
fn documents() -> Vec<Document> {
    let mut paths = Vec::new();
    files(&root(), &mut paths);
    let mut documents = Vec::new();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "yaml")) {
        let file = path.strip_prefix(root()).unwrap().display().to_string();
        let text = fs::read_to_string(path).unwrap();
        for text in text.split("\n---\n") {
            let value = serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{file}: {error}"));
            documents.push(Document { file: file.clone(), value });
        }
    }
    assert!(documents.len() > 20);
    documents
}

fn all<T: DeserializeOwned>(kind: &str) -> Vec<T> {
    documents().iter().filter(|document| document.kind() == kind).map(Document::typed).collect()
}

fn only<T: DeserializeOwned>(kind: &str) -> T {
    let mut found = all(kind);
    assert_eq!(found.len(), 1, "{kind}");
    found.remove(0)
}

/// Collects the paths in `given` that are missing from `known`, the same document after a round trip through
/// its type.
fn unknown(given: &Value, known: &Value, path: &str, found: &mut Vec<String>) {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => {
            for (key, value) in given {
                let path = format!("{path}.{key}");
                match known.get(key) {
                    Some(other) => unknown(value, other, &path, found),
                    None if value.as_array().is_some_and(Vec::is_empty) => {}
                    // An empty selector selects everything.
                    None if value.as_object().is_some_and(serde_json::Map::is_empty) => {}
                    None => found.push(path),
                }
            }
        }
        (Value::Array(given), Value::Array(known)) => {
            assert_eq!(given.len(), known.len(), "{path}");
            for (at, (value, other)) in given.iter().zip(known).enumerate() {
                unknown(value, other, &format!("{path}[{at}]"), found);
            }
        }
        (Value::Number(one), Value::Number(other)) if one.as_f64() == other.as_f64() => {}
        (given, known) if given != known => found.push(format!("{path}: {given} is {known}")),
        _ => {}
    }
}

/// Returns the fields of a document that its type does not have.
fn unknown_fields(value: &Value) -> Vec<String> {
    fn read<T: Serialize + DeserializeOwned>(value: &Value) -> Result<Value, String> {
        let typed: T = serde_json::from_value(value.clone()).map_err(|error| error.to_string())?;
        Ok(serde_json::to_value(typed).unwrap())
    }
    let as_alpha = |value: &Value| {
        let mut value = value.clone();
        value["apiVersion"] = "admissionregistration.k8s.io/v1alpha1".into();
        value
    };
    let as_stable = |mut value: Value| {
        value["apiVersion"] = "admissionregistration.k8s.io/v1".into();
        value
    };
    let known = match (value["apiVersion"].as_str().unwrap(), value["kind"].as_str().unwrap()) {
        ("v1", "Namespace") => read::<Namespace>(value),
        ("v1", "ResourceQuota") => read::<ResourceQuota>(value),
        ("v1", "Service") => read::<Service>(value),
        ("v1", "ServiceAccount") => read::<ServiceAccount>(value),
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy") => {
            read::<ValidatingAdmissionPolicy>(value)
        }
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding") => {
            read::<ValidatingAdmissionPolicyBinding>(value)
        }
        // v1 since Kubernetes 1.36, with the fields of v1alpha1 at the API level that is compiled in.
        ("admissionregistration.k8s.io/v1", "MutatingAdmissionPolicy") => {
            read::<MutatingAdmissionPolicy>(&as_alpha(value)).map(as_stable)
        }
        ("admissionregistration.k8s.io/v1", "MutatingAdmissionPolicyBinding") => {
            read::<MutatingAdmissionPolicyBinding>(&as_alpha(value)).map(as_stable)
        }
        ("apps/v1", "DaemonSet") => read::<DaemonSet>(value),
        ("apps/v1", "Deployment") => read::<Deployment>(value),
        ("policy/v1", "PodDisruptionBudget") => read::<PodDisruptionBudget>(value),
        ("networking.k8s.io/v1", "NetworkPolicy") => read::<NetworkPolicy>(value),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => read::<ClusterRole>(value),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => read::<ClusterRoleBinding>(value),
        ("rbac.authorization.k8s.io/v1", "Role") => read::<Role>(value),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => read::<RoleBinding>(value),
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition") => read::<CustomResourceDefinition>(value),
        ("monitoring.coreos.com/v1", "ServiceMonitor") => read::<ServiceMonitor>(value),
        ("monitoring.coreos.com/v1", "PodMonitor") => read::<PodMonitor>(value),
        ("monitoring.coreos.com/v1", "PrometheusRule") => read::<PrometheusRule>(value),
        ("kustomize.config.k8s.io/v1beta1", "Kustomization") => read::<Kustomization>(value),
        other => panic!("unknown type {other:?}"),
    };
    let mut found = Vec::new();
    match known {
        Ok(known) => unknown(value, &known, "", &mut found),
        Err(error) => found.push(error),
    }
    found
}

#[test]
fn every_document_is_what_its_type_says() {
    for document in documents() {
        let unknown_fields = unknown_fields(&document.value);
        assert!(unknown_fields.is_empty(), "{}: {unknown_fields:#?}", document.file);
    }
    // An unknown field would be reported.
    let mut deployment = documents().into_iter().find(|document| document.kind() == "Deployment").unwrap();
    deployment.value["spec"]["template"]["spec"]["containers"][0]["securityContext"]["readonly"] =
        true.into();
    deployment.value["spec"]["replica"] = 2.into();
    assert_eq!(unknown_fields(&deployment.value).len(), 2);
}

#[test]
fn the_definition_is_what_the_program_says() {
    let mut larder = Command::new(env!("CARGO_BIN_EXE_larder"));
    let output = larder.args(["config", "crd"]).output().unwrap();
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        fs::read_to_string(root().join("crd.yaml")).unwrap()
    );
}

#[test]
fn everything_is_in_the_kustomization_once() {
    let mut listed: Vec<String> = Vec::new();
    for document in documents().iter().filter(|document| document.kind() == "Kustomization") {
        let kustomization: Kustomization = document.typed();
        let dir = Path::new(&document.file).parent().unwrap().to_owned();
        listed.push(document.file.clone());
        let generated = kustomization.config_map_generator.iter().flat_map(|generator| &generator.files);
        listed.extend(
            kustomization.resources.iter().chain(generated).map(|file| dir.join(file).display().to_string()),
        );
    }
    // Each tenant's administrator applies these.
    listed.extend(["tenant-miss.yaml", "tenant.yaml"].map(str::to_owned));
    listed.sort_unstable();
    let mut there = Vec::new();
    files(&root(), &mut there);
    let there: Vec<_> =
        there.iter().map(|path| path.strip_prefix(root()).unwrap().display().to_string()).collect();
    assert_eq!(listed, there);
}

#[test]
fn what_is_named_is_there() {
    let own = Cluster::default().namespace;
    let mut seen = BTreeSet::new();
    for document in documents().iter().filter(|document| document.kind() != "Kustomization") {
        let (kind, name, namespace) = (document.kind(), document.name(), document.namespace());
        assert!(
            seen.insert((kind.to_owned(), name.to_owned(), namespace.map(str::to_owned))),
            "{kind} {name}"
        );
        let wanted = match kind {
            "Namespace" | "ClusterRole" | "ClusterRoleBinding" | "CustomResourceDefinition" => None,
            "ValidatingAdmissionPolicy" | "ValidatingAdmissionPolicyBinding" => None,
            "MutatingAdmissionPolicy" | "MutatingAdmissionPolicyBinding" => None,
            _ if document.file.starts_with("tenant") => Some("team-a"),
            _ if document.file.starts_with("node/") => {
                namespace.filter(|name| NODES.contains(name)).or(Some(""))
            }
            _ => Some(own.as_str()),
        };
        assert_eq!(namespace, wanted, "{kind} {name}");
    }
    let there = |kind: &str, name: &str, namespace: Option<&str>| {
        let key = (kind.to_owned(), name.to_owned(), namespace.map(str::to_owned));
        assert!(seen.contains(&key), "{key:?}");
    };
    for namespace in NODES.into_iter().chain([own.as_str()]) {
        there("Namespace", namespace, None);
    }
    there("ServiceAccount", &Cluster::default().builder_service_account, Some(&own));
    let bound = |role: &RoleRef, subjects: Option<Vec<Subject>>, namespace: Option<&str>| {
        there(&role.kind, &role.name, namespace.filter(|_| role.kind == "Role"));
        for subject in subjects.unwrap() {
            assert_eq!(subject.kind, "ServiceAccount");
            assert!([MANAGER, "larder-node"].contains(&subject.name.as_str()), "{}", subject.name);
            there(&subject.kind, &subject.name, subject.namespace.as_deref());
        }
    };
    for binding in all::<RoleBinding>("RoleBinding") {
        bound(&binding.role_ref, binding.subjects, binding.metadata.namespace.as_deref());
    }
    for binding in all::<ClusterRoleBinding>("ClusterRoleBinding") {
        bound(&binding.role_ref, binding.subjects, None);
    }
}

#[test]
fn no_right_is_given_by_wildcard_and_secrets_are_read_by_name() {
    let cluster =
        all::<ClusterRole>("ClusterRole").into_iter().map(|role| (None, role.metadata.name, role.rules));
    let local =
        all::<Role>("Role").into_iter().map(|role| (role.metadata.namespace, role.metadata.name, role.rules));
    for (namespace, name, rules) in cluster.chain(local) {
        for rule in rules.unwrap() {
            let PolicyRule { api_groups, resources, verbs, resource_names, non_resource_urls } = rule.clone();
            let (groups, resources) = (api_groups.unwrap(), resources.unwrap());
            assert!(non_resource_urls.is_none(), "{rule:?}");
            assert!([&groups, &resources, &verbs].iter().all(|words| !words.is_empty()), "{rule:?}");
            assert!(
                ![&groups, &resources, &verbs]
                    .iter()
                    .any(|words| words.iter().any(|word| word.contains('*')))
            );
            for forbidden in ["escalate", "bind", "impersonate", "deletecollection"] {
                assert!(!verbs.iter().any(|verb| verb == forbidden), "{rule:?}");
            }
            let reads = verbs.iter().any(|verb| ["get", "list", "watch"].contains(&verb.as_str()));
            if resources.iter().any(|resource| resource == "secrets") && reads {
                assert_eq!(
                    (verbs, namespace.as_deref(), name.as_deref()),
                    (vec!["get".to_owned()], Some("team-a"), Some("larder-pull-secrets"))
                );
                assert!(!resource_names.unwrap().is_empty());
            }
        }
    }
}

#[test]
fn pods_are_selected_by_the_labels_that_they_have() {
    let deployment: Deployment = only("Deployment");
    let spec = deployment.spec.unwrap();
    let daemon = spec.template.metadata.unwrap().labels.unwrap();
    let id = "8f14e45f-ceea-4e7a-9c2b-0123456789ab".parse().unwrap();
    let volume = VolumeId { tenant: "team-a".parse().unwrap(), id, generation: 1 };
    let names = Names { namespace: "larder".into() };
    let (builder, verifier) = (names.labels(&volume), names.verifier_labels(&volume));
    let meets = |selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>| {
        selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    };
    let daemons_alone = |selector: Option<BTreeMap<String, String>>| {
        let selector = selector.unwrap();
        assert!(meets(&selector, &daemon) && !meets(&selector, &builder), "{selector:?}");
    };
    daemons_alone(spec.selector.match_labels);
    let service: Service = only("Service");
    daemons_alone(service.spec.unwrap().selector);
    let budget: PodDisruptionBudget = only("PodDisruptionBudget");
    let budget = budget.spec.unwrap();
    daemons_alone(budget.selector.unwrap().match_labels);
    // A drain can continue, and one daemon stays.
    assert!(
        matches!(budget.min_available, Some(IntOrString::Int(least)) if 0 < least && least < spec.replicas.unwrap())
    );
    for constraint in spec.template.spec.unwrap().topology_spread_constraints.unwrap() {
        daemons_alone(constraint.label_selector.unwrap().match_labels);
    }
    // The monitor selects the service by its own labels.
    let monitor: ServiceMonitor = only("ServiceMonitor");
    let service = only::<Service>("Service").metadata.labels.unwrap();
    assert!(meets(&monitor.spec.selector.match_labels.unwrap(), &service));

    let policies: BTreeMap<_, _> = all::<NetworkPolicy>("NetworkPolicy")
        .into_iter()
        .filter(|policy| policy.metadata.namespace.as_deref() == Some("larder"))
        .map(|policy| (policy.metadata.name.unwrap(), policy.spec.unwrap()))
        .collect();
    let selects = |name: &str, labels| {
        let selector =
            policies[name].pod_selector.clone().unwrap_or_default().match_labels.unwrap_or_default();
        meets(&selector, labels)
    };
    assert_eq!(policies.len(), 3);
    assert!(selects("larder-none", &daemon) && selects("larder-none", &builder));
    assert!(selects("larder", &daemon) && !selects("larder", &builder));
    assert!(!selects("larder-builder", &daemon) && selects("larder-builder", &builder));
    // A verifier has no network: the one policy that selects it allows nothing.
    for name in policies.keys() {
        assert_eq!(selects(name, &verifier), name == "larder-none", "{name}");
    }
    for policy in policies.values() {
        assert_eq!(policy.policy_types.as_deref().unwrap(), ["Ingress", "Egress"]);
    }
    // Pods that contact registries exclude all addresses that a tenant's order cannot reach.
    for policy in [&policies["larder"], &policies["larder-builder"]] {
        let peers: Vec<_> =
            policy.egress.iter().flatten().flat_map(|rule| rule.to.iter().flatten()).collect();
        let left_out: Vec<AddressRange> = peers
            .iter()
            .filter_map(|peer| peer.ip_block.as_ref())
            .flat_map(|block| block.except.iter().flatten())
            .map(|range| range.parse().unwrap())
            .collect();
        let loopback = ["127.0.0.0/8", "::1/128"].map(|range| range.parse().unwrap());
        for range in METADATA.iter().chain(&LINK_LOCAL).chain(&loopback) {
            assert!(left_out.iter().any(|out| out.covers(range)), "{range}");
        }
        for hidden in [
            "64:ff9b::169.254.169.254",
            "64:ff9b::168.63.129.16",
            "64:ff9b::192.0.0.192",
            "64:ff9b::100.100.100.200",
            "64:ff9b::127.0.0.1",
            "64:ff9b:1::169.254.169.254",
            "2002:a9fe:a9fe::1",
        ] {
            assert!(left_out.iter().any(|out| out.contains(hidden.parse().unwrap(), 80)), "{hidden}");
        }
        // Pods are reachable only in namespaces that are labelled to have registries.
        for namespaces in peers.iter().filter_map(|peer| peer.namespace_selector.as_ref()) {
            assert!(namespaces.match_labels.as_ref().is_some_and(|labels| !labels.is_empty()));
        }
    }
    assert!(policies["larder-none"].ingress.is_none() && policies["larder-none"].egress.is_none());
    assert!(policies["larder-builder"].ingress.is_none());
}
