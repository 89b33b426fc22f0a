use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Secret};

use super::*;
use crate::caches::pull_secrets::Form;

#[test]
fn objects_fit_the_types_of_kubernetes() {
    let names = Names { namespace: "larder".into() };
    let cluster = Cluster { storage_class: "fast".into(), ..Cluster::default() };
    let id = "8f14e45f-ceea-4e7a-9c2b-0123456789ab".parse().unwrap();
    let volume = VolumeId { tenant: "team".parse().unwrap(), id, generation: 1 };
    let job = Job::parse(br#"{"images":["a:1"]}"#).unwrap();
    let (caches, layer_format) = (Caches::default(), LayerFormat::Overlay);
    let parts =
        Parts { names: &names, cluster: &cluster, caches: &caches, layer_format, volume: &volume, job: &job };
    let content = |text: &str, form| Content::parse(form, text.as_bytes().to_vec()).unwrap();
    let secrets = [
        ("team:b".parse().unwrap(), content(r#"{"auths":{}}"#, Form::DockerConfigJson)),
        ("team:a".parse().unwrap(), content("{}", Form::DockerCfg)),
    ];
    let json = parts.job(&secrets, 3600);
    let typed: KubeJob = serde_json::from_value(json.clone()).unwrap();
    // Every field that was written must exist in the types.
    let back = serde_json::to_value(&typed).unwrap();
    assert_eq!(back, json);
    let pod = &json["spec"]["template"]["spec"];
    assert_eq!(pod["volumes"][2]["secret"]["items"][0]["path"], "team/b/.dockerconfigjson");
    assert_eq!(pod["volumes"][2]["secret"]["items"][1]["path"], "team/a/.dockercfg");
    assert_eq!(json["spec"]["activeDeadlineSeconds"], 4200);
    assert_eq!(parts.job(&[], 1)["spec"]["template"]["spec"]["volumes"][2]["emptyDir"]["sizeLimit"], "1Mi");
    let signing = Cluster { sign_secret: "sign".into(), ..cluster.clone() };
    let signed = Parts { cluster: &signing, ..parts }.job(&secrets, 1);
    let typed_again: KubeJob = serde_json::from_value(signed.clone()).unwrap();
    assert_eq!(serde_json::to_value(&typed_again).unwrap(), signed);
    let pod = &signed["spec"]["template"]["spec"];
    assert_eq!(pod["volumes"][4]["secret"]["secretName"], "sign");
    assert_eq!(pod["volumes"][4]["secret"]["defaultMode"], 0o400);
    assert_eq!(pod["containers"][0]["volumeMounts"][4]["readOnly"], true);
    assert_eq!(pod["containers"][0]["args"][7], "--sign-key=/run/larder/sign/key.pem");
    let mut owner = typed;
    owner.metadata.uid = Some("u".into());
    let digest = Digest::sha256(b"d");
    for (layer_format, user, capabilities) in [
        (LayerFormat::Overlay, 0, json!({"drop": ["ALL"], "add": ["DAC_OVERRIDE"]})),
        (LayerFormat::Erofs, 65532, json!({"drop": ["ALL"]})),
    ] {
        // A verifier gets no key, even if builders sign.
        let parts = Parts { layer_format, cluster: &signing, ..parts };
        let json = parts.verifier(&owner, &digest, 60);
        let typed: KubeJob = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(serde_json::to_value(&typed).unwrap(), json);
        assert_eq!(json["metadata"]["ownerReferences"][0]["uid"], "u");
        let template = &json["spec"]["template"];
        assert_eq!(template["metadata"]["labels"]["app.kubernetes.io/name"], "larder-verifier");
        let pod = &template["spec"];
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert_eq!(pod["securityContext"]["runAsUser"], user);
        assert_eq!(pod["containers"].as_array().unwrap().len(), 1);
        let container = &pod["containers"][0];
        assert_eq!(container["args"], json!(["verify", format!("--digest={digest}"), "/cache"]));
        assert_eq!(container["securityContext"]["capabilities"], capabilities);
        assert_eq!(container["env"], Value::Null);
        assert_eq!(container["resources"]["limits"]["memory"], (2_u64 << 30).to_string());
        assert_eq!(
            pod["volumes"],
            json!([
                {"name": "cache", "persistentVolumeClaim": {"claimName": object(&volume), "readOnly": true}},
                {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
            ])
        );
        assert_eq!(
            container["volumeMounts"],
            json!([
                {"name": "cache", "mountPath": "/cache", "readOnly": true},
                {"name": "tmp", "mountPath": "/tmp"},
            ])
        );
    }
    let images = Parts { layer_format: LayerFormat::Erofs, ..parts };
    let pod = &images.job(&secrets, 1)["spec"]["template"]["spec"];
    let _: k8s_openapi::api::core::v1::PodSpec = serde_json::from_value(pod.clone()).unwrap();
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    let signed = Parts { cluster: &signing, ..images }.job(&[], 1);
    let volumes = &signed["spec"]["template"]["spec"]["volumes"];
    assert_eq!(volumes[4]["secret"]["defaultMode"], 0o440);
    assert_eq!(pod["containers"][0]["securityContext"]["capabilities"], json!({"drop": ["ALL"]}));
    let secret: Secret = serde_json::from_value(parts.secret(&owner, "", &secrets).unwrap()).unwrap();
    assert_eq!(secret.data.unwrap()["auth-1.json"].0, b"{}");
    assert_eq!(secret.metadata.owner_references.unwrap()[0].uid, "u");
    let claim: PersistentVolumeClaim = serde_json::from_value(parts.claim(&owner, 20)).unwrap();
    assert_eq!(claim.spec.unwrap().storage_class_name.unwrap(), "fast");
}
