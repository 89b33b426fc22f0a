//! Pull secrets of the cluster, read by name when they are needed.
//!
//! The requester must not learn which secrets exist. A secret that is absent, forbidden, of another type or
//! malformed gives no credential, and all of these are reported with the same text ([`Unusable`]).

use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use kube::{Client, ResourceExt as _};

use super::fault::{Fault, request};
use super::names::{PULL_BY, is_listed};
use crate::caches::pull_secrets::{Content, Form, Unusable};
use crate::caches::record::RequestOrigin;
use larder_model::image_cache::TenantName;
use larder_model::pull_secret::PullSecretName;

/// Reads the secrets that give a credential, in the given order and without duplicates. The names of the
/// others are added to `unusable`.
///
/// # Errors
/// A request failed and can succeed later.
pub async fn read(
    client: &Client,
    tenant: &TenantName,
    ordered_by: RequestOrigin,
    names: &[PullSecretName],
    unusable: &mut Unusable,
) -> Result<Vec<(PullSecretName, Content)>, Fault> {
    let mut usable: Vec<(PullSecretName, Content)> = Vec::new();
    for name in names {
        if usable.iter().any(|(known, _)| known == name) {
            continue;
        }
        match find(client, name).await? {
            Some(secret) if may_use(&secret, tenant, ordered_by, name) => match content(secret) {
                Some(content) => usable.push((name.clone(), content)),
                None => unusable.add(&name.to_string()),
            },
            _ => unusable.add(&name.to_string()),
        }
    }
    Ok(usable)
}

/// Reads a secret. Returns `None` for both 403 and 404.
async fn find(client: &Client, name: &PullSecretName) -> Result<Option<Secret>, Fault> {
    let api: Api<Secret> = Api::namespaced(client.clone(), name.namespace());
    match request!("reading a pull secret", api.get(name.name())) {
        Ok(secret) => Ok(Some(secret)),
        Err(fault) if fault.is_transient() => Err(fault),
        Err(fault) => {
            tracing::debug!(secret = %name, "{fault}");
            Ok(None)
        }
    }
}

/// Reports whether a request can use a secret. The configuration limits the secrets of API requests. The
/// author of an object can use the secrets of its namespace, because a pod there can mount them anyway. A
/// secret of another namespace must permit it by annotation. Otherwise, permission to write objects would be
/// permission to read every secret.
fn may_use(secret: &Secret, tenant: &TenantName, ordered_by: RequestOrigin, name: &PullSecretName) -> bool {
    if ordered_by == RequestOrigin::Api || name.namespace() == tenant.as_str() {
        return true;
    }
    is_listed(secret.annotations().get(PULL_BY).map(String::as_str), tenant.as_str())
}

/// Returns the bytes that the kubelet would read. `None` if they are malformed.
fn content(secret: Secret) -> Option<Content> {
    let form = match secret.type_.as_deref() {
        Some("kubernetes.io/dockerconfigjson") => Form::DockerConfigJson,
        Some("kubernetes.io/dockercfg") => Form::DockerCfg,
        _ => return None,
    };
    Content::parse(form, secret.data?.remove(form.file_name())?.0)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    fn secret(pull_by: &str) -> Secret {
        let mut secret = Secret::default();
        secret.annotations_mut().insert(PULL_BY.to_owned(), pull_by.to_owned());
        secret
    }

    #[test]
    fn secrets_of_other_namespaces_need_an_annotation() {
        let (team, name) = ("team".parse().unwrap(), "other:registry".parse().unwrap());
        let may = |pull_by: &str, by| may_use(&secret(pull_by), &team, by, &name);
        assert!(may("", RequestOrigin::Api) && !may("", RequestOrigin::Cluster));
        assert!(may("x, team", RequestOrigin::Cluster) && may("*", RequestOrigin::Cluster));
        assert!(!may("teams", RequestOrigin::Cluster) && !may("te*", RequestOrigin::Cluster));
        assert!(may_use(&Secret::default(), &team, RequestOrigin::Cluster, &"team:own".parse().unwrap()));
    }

    #[test]
    fn only_secrets_that_a_kubelet_accepts() {
        let of = |type_: &str, key: &str, text: &str| {
            let data = [(key.to_owned(), ByteString(text.as_bytes().to_vec()))];
            content(Secret { type_: Some(type_.to_owned()), data: Some(data.into()), ..Secret::default() })
        };
        let json = r#"{"auths":{"r.io":{"username":"u","password":"hidden"}}}"#;
        assert_eq!(
            of("kubernetes.io/dockerconfigjson", ".dockerconfigjson", json).unwrap().expose(),
            json.as_bytes()
        );
        let cfg = r#"{"r.io":{"username":"u","password":"hidden"}}"#;
        assert_eq!(of("kubernetes.io/dockercfg", ".dockercfg", cfg).unwrap().form, Form::DockerCfg);
        assert!(of("Opaque", ".dockerconfigjson", json).is_none());
        assert!(of("kubernetes.io/dockercfg", ".dockerconfigjson", json).is_none());
        // API servers accept this (facts of Kubernetes): they only check that it is JSON.
        assert!(of("kubernetes.io/dockerconfigjson", ".dockerconfigjson", r#"{"auths":[1]}"#).is_none());
    }
}
