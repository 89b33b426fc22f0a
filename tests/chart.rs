//! Checks that `config/helm/larder` creates the same objects as `config/kubernetes`. The chart is rendered by
//! `helm` if it is installed, otherwise by an implementation of the part of its template language that the
//! chart uses (`chart/render.rs`).

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "chart/lifecycle.rs"]
mod lifecycle;
#[path = "chart/parse.rs"]
mod parse;
#[path = "chart/render.rs"]
mod render;
#[path = "chart/value.rs"]
mod value;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config")
}

fn chart() -> PathBuf {
    root().join("helm/larder")
}

fn is_there(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists()))
}

/// Renders the chart with these values, and returns its objects or the error.
fn rendered(namespace: &str, values: &Value) -> Result<Vec<Value>, String> {
    let own = render::render(&chart(), namespace, values);
    if !is_there("helm") {
        return own;
    }
    let helm = helm(namespace, values);
    match (&own, &helm) {
        (Ok(own), Ok(helm)) => assert_eq!(keyed(own), keyed(helm), "helm renders other objects"),
        (Err(own), Err(helm)) => assert!(helm.contains(own), "{helm}"),
        (own, helm) => assert_eq!(own.is_ok(), helm.is_ok(), "{own:?} {helm:?}"),
    }
    helm
}

/// Renders the chart by `helm template`.
fn helm(namespace: &str, values: &Value) -> Result<Vec<Value>, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), values.to_string()).unwrap();
    let mut helm = Command::new("helm");
    helm.args(["template", "larder"]).arg(chart()).args([
        "--namespace",
        namespace,
        "--kube-version",
        "1.36.0",
    ]);
    let done = helm.arg("--values").arg(file.path()).output().unwrap();
    if !done.status.success() {
        return Err(String::from_utf8(done.stderr).unwrap());
    }
    Ok(documents(&String::from_utf8(done.stdout).unwrap()))
}

/// Returns the objects of a directory, as `kubectl kustomize` prints them.
fn kustomized(directory: &str) -> Vec<Value> {
    let done = Command::new("kubectl").arg("kustomize").arg(root().join(directory)).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    documents(&String::from_utf8(done.stdout).unwrap())
}

fn documents(text: &str) -> Vec<Value> {
    let documents = text.split("\n---\n").map(|document| document.trim_start_matches("---\n"));
    let documents = documents.filter(|document| document.lines().any(|line| !line.starts_with('#')));
    documents.map(|document| serde_saphyr::from_str(document).unwrap()).collect()
}

/// Maps objects by kind, namespace and name.
fn keyed(objects: &[Value]) -> BTreeMap<String, Value> {
    let mut keyed = BTreeMap::new();
    for object in objects {
        let meta = &object["metadata"];
        let key = format!("{} {} {}", object["kind"], meta["namespace"], meta["name"]).replace('"', "");
        let mut object = object.clone();
        whole(&mut object);
        assert!(keyed.insert(key.clone(), object).is_none(), "{key} twice");
    }
    keyed
}

/// Writes 400.0 as 400, as Helm and Kustomize do.
fn whole(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(whole),
        Value::Array(items) => items.iter_mut().for_each(whole),
        Value::Number(number) => {
            if let Some(float) = number.as_f64().filter(|float| number.is_f64() && float.fract() == 0.0) {
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "it has no fraction, and numbers here are small"
                )]
                let integer = float as i64;
                *value = integer.into();
            }
        }
        _ => {}
    }
}

/// Removes the parts that must differ between the two. Kustomize appends a hash to the name of a
/// configuration, the chart annotates pods with a hash, and the chart keeps some objects when it is
/// uninstalled. Configurations are compared as TOML.
fn comparable(objects: &[Value]) -> BTreeMap<String, Value> {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                if let Some(annotations) = fields.get_mut("annotations").and_then(Value::as_object_mut) {
                    annotations.retain(|key, _| {
                        !["checksum/config", "helm.sh/resource-policy"].contains(&key.as_str())
                    });
                    if annotations.is_empty() {
                        fields.remove("annotations");
                    }
                }
                if let Some(map) = fields.get_mut("configMap") {
                    map["name"] = json!(plain(map["name"].as_str().unwrap()));
                }
                fields.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut objects = objects.to_vec();
    for object in &mut objects {
        strip(object);
        if object["kind"] == "ConfigMap" {
            object["metadata"]["name"] = json!(plain(object["metadata"]["name"].as_str().unwrap()));
            object["data"] = configuration(object);
        }
    }
    keyed(&objects)
}

/// Panics with the first object that differs.
fn same(chart: &[Value], kustomization: &[Value]) {
    let (chart, kustomization) = (comparable(chart), comparable(kustomization));
    let (ours, theirs): (Vec<_>, Vec<_>) = (chart.keys().collect(), kustomization.keys().collect());
    assert_eq!(ours, theirs);
    for (key, object) in &chart {
        assert_eq!(*object, kustomization[key], "{key}");
    }
}

/// Returns a name without the hash that Kustomize appends.
fn plain(name: &str) -> &str {
    match name.rsplit_once('-') {
        Some((plain, hash)) if hash.len() == 10 => plain,
        _ => name,
    }
}

fn configuration(map: &Value) -> Value {
    let parsed: toml::Table = toml::from_str(map["data"]["larder.toml"].as_str().unwrap()).unwrap();
    serde_json::to_value(parsed).unwrap()
}

#[test]
fn the_chart_makes_the_objects_of_the_kustomization() {
    assert!(is_there("kubectl"), "this test needs kubectl");
    let defaults = rendered("larder", &json!({"namespace": {"create": true}})).unwrap();
    same(&defaults, &kustomized("kubernetes"));

    let all = json!({
        "namespace": {"create": true}, "monitoring": {"enabled": true},
        "node": {"enabled": true, "readiness": true, "required": true},
    });
    let directories = ["", "/node", "/node/readiness", "/node/required", "/monitoring"];
    let mut objects: Vec<Value> =
        directories.iter().flat_map(|below| kustomized(&format!("kubernetes{below}"))).collect();
    // Settings that docs/kubernetes.md describes for these parts.
    for object in objects.iter_mut().filter(|object| object["kind"] == "ConfigMap") {
        let text = object["data"]["larder.toml"].as_str().unwrap();
        let text =
            text.replace("node_namespace = \"\"", "node_namespace = \"larder-volumes\"\nhold_pods = true");
        object["data"]["larder.toml"] = json!(text.replace("[node]\n", "[node]\nreadiness = true\n"));
    }
    same(&rendered("larder", &all).unwrap(), &objects);
}

#[test]
fn each_value_has_its_effect() {
    let daemon = "Deployment larder larder";
    let agent = "DaemonSet larder-nodes larder-node";
    let pod = "/spec/template/spec";
    let image = json!({"repository": "registry.example.com/larder", "tag": "1", "pullPolicy": "Always"});
    let node = |more: Value| {
        let mut node = json!({"enabled": true});
        node.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"node": node})
    };
    let secrets = json!({"imagePullSecrets": ["one", "two"]});
    for (values, object, at, want) in [
        (
            json!({"image": image}),
            daemon,
            format!("{pod}/containers/0/image"),
            json!("registry.example.com/larder:1"),
        ),
        (json!({"image": image}), daemon, format!("{pod}/containers/0/imagePullPolicy"), json!("Always")),
        (json!({"replicas": 3}), daemon, "/spec/replicas".into(), json!(3)),
        (
            json!({"resources": {"limits": {"memory": "1Gi"}}}),
            daemon,
            format!("{pod}/containers/0/resources/limits/memory"),
            json!("1Gi"),
        ),
        (
            json!({"tolerations": [{"operator": "Exists"}]}),
            daemon,
            format!("{pod}/tolerations"),
            json!([{"operator": "Exists"}]),
        ),
        (json!({"nodeSelector": {"a": "b"}}), daemon, format!("{pod}/nodeSelector"), json!({"a": "b"})),
        (
            json!({"affinity": {"podAffinity": {}}}),
            daemon,
            format!("{pod}/affinity"),
            json!({"podAffinity": {}}),
        ),
        (json!({"priorityClassName": "high"}), daemon, format!("{pod}/priorityClassName"), json!("high")),
        (
            json!({"tls": {"secretName": "own"}}),
            daemon,
            format!("{pod}/volumes/1/secret/secretName"),
            json!("own"),
        ),
        (json!({"configSecret": "own"}), daemon, format!("{pod}/volumes/0/secret/secretName"), json!("own")),
        (
            secrets.clone(),
            "ServiceAccount larder larder-builder",
            "/imagePullSecrets".into(),
            json!([{"name": "one"}, {"name": "two"}]),
        ),
        (secrets, "ServiceAccount larder larder", "/imagePullSecrets/0/name".into(), json!("one")),
        (
            json!({"tls": {"certManager": {"enabled": true, "issuerRef": {"name": "ca"}}}}),
            "Certificate larder larder",
            "/spec/issuerRef/name".into(),
            json!("ca"),
        ),
        (
            json!({"monitoring": {"enabled": true, "tokenSecret": "own"}}),
            "ServiceMonitor larder larder",
            "/spec/endpoints/0/authorization/credentials/name".into(),
            json!("own"),
        ),
        (
            json!({"namespace": {"create": true}, "config": {"build": {"layer_format": "overlay"}}}),
            "Namespace null larder",
            "/metadata/labels/pod-security.kubernetes.io~1enforce".into(),
            json!("baseline"),
        ),
        (
            json!({"namespace": {"create": true, "podSecurity": "privileged"}}),
            "Namespace null larder",
            "/metadata/labels/pod-security.kubernetes.io~1warn".into(),
            json!("privileged"),
        ),
        (node(json!({"tolerations": []})), agent, format!("{pod}/tolerations"), json!([])),
        (node(json!({"nodeSelector": {"a": "b"}})), agent, format!("{pod}/nodeSelector/a"), json!("b")),
        (
            node(json!({"priorityClassName": "high"})),
            agent,
            format!("{pod}/priorityClassName"),
            json!("high"),
        ),
        (
            node(json!({"runtimeClassName": "plain"})),
            agent,
            format!("{pod}/runtimeClassName"),
            json!("plain"),
        ),
        (
            node(json!({"runtimeClassName": "plain"})),
            agent,
            "/spec/template/metadata/annotations/io.containerd.cri.runtime-handler".into(),
            json!("plain"),
        ),
        (
            node(json!({"resources": {"limits": {"memory": "1Gi"}}})),
            agent,
            format!("{pod}/containers/0/resources/limits/memory"),
            json!("1Gi"),
        ),
    ] {
        let objects = keyed(&rendered("larder", &values).unwrap());
        assert_eq!(objects[object].pointer(&at), Some(&want), "{values}: {object} {at}");
    }
    let count = |values: Value, kind: &str| {
        rendered("larder", &values).unwrap().iter().filter(|object| object["kind"] == kind).count()
    };
    assert_eq!(
        count(json!({"networkPolicy": {"enabled": false}, "node": {"enabled": true}}), "NetworkPolicy"),
        0
    );
    assert_eq!(count(json!({"crds": {"install": false}}), "CustomResourceDefinition"), 0);
    assert_eq!(count(json!({"configSecret": "own"}), "ConfigMap"), 0);
    assert_eq!(count(json!({}), "Namespace"), 0);
    let refused = rendered("larder", &node(json!({"required": true}))).unwrap_err();
    assert!(refused.contains("node.readiness"), "{refused}");
}

/// The program accepts the configurations, and they contain the values.
#[test]
fn configurations_are_valid() {
    let values = json!({
        "cluster": {"storageClass": "fast", "signSecret": "larder-sign", "extra": {"access_mode": "ReadWriteOnce"}},
        "tenants": [{"name": "team-b", "tokenSha256": ["1".repeat(64)], "pullSecrets": ["team-b:x"]}],
        "config": {"caches": {"max_per_tenant": 7}},
        "extraConfig": "[[registry.host]]\nname = \"registry.example.com\"\n",
        "node": {
            "enabled": true, "storageClass": "fast", "caches": ["team-b/web"], "verifyLayers": false, "snapshotter": false,
            "readiness": true, "required": true, "extra": {"max_caches": 3},
        },
    });
    let objects = keyed(&rendered("cache", &values).unwrap());
    let load = |key: &str| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("larder.toml");
        fs::write(&file, objects[key]["data"]["larder.toml"].as_str().unwrap()).unwrap();
        larder::config::Config::load(Some(&file), []).unwrap()
    };
    let daemon = load("ConfigMap cache larder");
    let cluster = &daemon.cluster[0];
    assert_eq!(
        (cluster.namespace.as_str(), cluster.storage_class.as_str(), cluster.access_mode.as_str()),
        ("cache", "fast", "ReadWriteOnce")
    );
    assert_eq!(
        (cluster.sign_secret.as_str(), cluster.node_namespace.as_str()),
        ("larder-sign", "larder-volumes")
    );
    assert!(cluster.hold_pods);
    assert_eq!(daemon.caches.max_per_tenant, 7);
    assert_eq!(daemon.registry.host.len(), 1);
    assert_eq!(daemon.tenant[0].name.to_string(), "team-b");
    let node = load("ConfigMap larder-nodes larder-node").node;
    assert_eq!((node.storage_class.as_str(), node.caches), ("fast", vec!["team-b/web".to_owned()]));
    assert_eq!(
        (node.verify_layers, node.snapshotter, node.readiness, node.max_caches),
        (false, false, true, 3)
    );
}

#[test]
fn another_namespace_is_used_everywhere() {
    let values = json!({"monitoring": {"enabled": true}, "node": {"enabled": true, "readiness": true, "required": true}});
    for object in rendered("cache", &values).unwrap() {
        let text = object.to_string();
        let namespace = object["metadata"]["namespace"].as_str();
        assert!(
            namespace.is_none_or(|name| ["cache", "larder-nodes", "larder-volumes"].contains(&name)),
            "{text}"
        );
        assert!(
            !text.contains("\"namespace\":\"larder\"") && !text.contains("system:serviceaccount:larder:"),
            "{text}"
        );
        assert!(!text.contains("larder.larder.svc"), "{text}");
    }
}

/// The schema has exactly the keys of values.yaml, wherever keys are fixed.
#[test]
fn the_schema_refuses_unknown_keys() {
    fn compare(values: &Value, schema: &Value, path: &str) {
        let (Some(values), Some(known)) = (values.as_object(), schema["properties"].as_object()) else {
            return;
        };
        if path != ".config" && path != ".config.build" {
            assert_eq!(schema["additionalProperties"], json!(false), "{path}");
            let given: Vec<_> = values.keys().collect();
            let known: Vec<_> = known.keys().filter(|key| *key != "global").collect();
            assert_eq!(given, known, "{path}");
        }
        for (key, value) in values {
            compare(value, &schema["properties"][key], &format!("{path}.{key}"));
        }
    }
    let values: Value =
        serde_saphyr::from_str(&fs::read_to_string(chart().join("values.yaml")).unwrap()).unwrap();
    let schema: Value =
        serde_json::from_str(&fs::read_to_string(chart().join("values.schema.json")).unwrap()).unwrap();
    compare(&values, &schema, "");
    if is_there("helm") {
        for wrong in [
            json!({"replica": 2}),
            json!({"node": {"x": 1}}),
            json!({"tenants": [{"name": "a"}]}),
            json!({"tenants": []}),
        ] {
            assert!(helm("larder", &wrong).is_err(), "{wrong}");
        }
    }
}

/// The chart and the program have the same version.
#[test]
fn the_chart_has_the_version_of_the_program() {
    let about: Value =
        serde_saphyr::from_str(&fs::read_to_string(chart().join("Chart.yaml")).unwrap()).unwrap();
    assert_eq!(
        (about["version"].as_str(), about["appVersion"].as_str()),
        (Some(env!("CARGO_PKG_VERSION")), Some(env!("CARGO_PKG_VERSION")))
    );
}
