//! `[[tenant]]`: the tenants that can use the API, with their credentials.

use std::collections::HashSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Fault;
use larder_model::image_cache::TenantName;

/// The tenant of root and the group of the socket. No other user can be this tenant.
pub const ADMIN: &str = "admin";

/// One `[[tenant]]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tenant {
    /// Name of the tenant: an RFC 1123 label.
    pub name: String,
    /// SHA-256 of the tenant's tokens, hexadecimal.
    pub token_sha256: Vec<String>,
    /// Access keys that sign requests of the tenant.
    pub access_keys: Vec<AccessKey>,
    /// Pull secrets that the tenant can use: `namespace:name`, `namespace:*` for all of a namespace, `*` for
    /// all.
    pub pull_secrets: Vec<String>,
}

/// An element of `access_keys`: one access key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AccessKey {
    /// Public part of the key, in the `Access` field of a signed request.
    pub id: String,
    /// File with the secret part, or `credential:NAME` for a systemd credential.
    pub secret_file: PathBuf,
}

/// Checks all tenants. Names, tokens and access keys must be unique.
pub(super) fn check(tenants: &[Tenant], faults: &mut Vec<Fault>) {
    let mut names = HashSet::new();
    let mut tokens = HashSet::new();
    let mut keys = HashSet::new();
    for (i, tenant) in tenants.iter().enumerate() {
        let mut fault = |key: String, reason: &str| {
            faults.push(Fault { key: format!("tenant[{i}].{key}"), reason: reason.to_owned() });
        };
        if let Err(e) = tenant.name.parse::<TenantName>() {
            fault("name".into(), &e.to_string());
        } else if !names.insert(&tenant.name) {
            fault("name".into(), "another tenant has the same name");
        } else if tenant.name == ADMIN && !(tenant.token_sha256.is_empty() && tenant.access_keys.is_empty()) {
            fault("name".into(), "the tenant admin uses the socket: remove its tokens and access keys");
        }
        for (at, token) in tenant.token_sha256.iter().enumerate() {
            if token.len() != 64 || !token.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
                fault(format!("token_sha256[{at}]"), "want 64 lower-case hexadecimal digits");
            } else if !tokens.insert(token) {
                fault(format!("token_sha256[{at}]"), "duplicate token");
            }
        }
        for (at, key) in tenant.access_keys.iter().enumerate() {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            if key.id.is_empty() || key.id.len() > 128 || !key.id.bytes().all(plain) {
                fault(format!("access_keys[{at}].id"), "want 1 to 128 characters of a-z A-Z 0-9 - _ .");
            } else if !keys.insert(&key.id) {
                fault(format!("access_keys[{at}].id"), "duplicate access key");
            }
            if key.secret_file.as_os_str().is_empty() {
                fault(format!("access_keys[{at}].secret_file"), "required, but missing");
            }
        }
        for (at, pattern) in tenant.pull_secrets.iter().enumerate() {
            let fits = pattern == "*"
                || match pattern.strip_suffix(":*") {
                    Some(namespace) => namespace.parse::<TenantName>().is_ok(),
                    None => pattern.parse::<larder_model::pull_secret::PullSecretName>().is_ok(),
                };
            if !fits {
                fault(format!("pull_secrets[{at}]"), "want namespace:name, namespace:* or *");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_reported() {
        let token = "a".repeat(64);
        let tenants = [
            Tenant { name: "team-a".into(), token_sha256: vec![token.clone()], ..Tenant::default() },
            Tenant {
                name: "team-a".into(),
                token_sha256: vec![token.clone(), "A".repeat(64)],
                ..Tenant::default()
            },
            Tenant {
                name: "_".into(),
                access_keys: vec![AccessKey::default()],
                pull_secrets: vec!["*".into(), "a:*".into(), "a:b".into(), "a*".into(), "*:b".into()],
                ..Tenant::default()
            },
            Tenant { name: ADMIN.into(), token_sha256: vec!["b".repeat(64)], ..Tenant::default() },
        ];
        let mut faults = Vec::new();
        check(&tenants, &mut faults);
        let keys: Vec<&str> = faults.iter().map(|fault| fault.key.as_str()).collect();
        assert_eq!(
            keys,
            [
                "tenant[1].name",
                "tenant[1].token_sha256[0]",
                "tenant[1].token_sha256[1]",
                "tenant[2].name",
                "tenant[2].access_keys[0].id",
                "tenant[2].access_keys[0].secret_file",
                "tenant[2].pull_secrets[3]",
                "tenant[2].pull_secrets[4]",
                "tenant[3].name",
            ]
        );
    }
}
