//! Tokens of service accounts, and RBAC authorization by the stored roles and bindings
//! (plugin/pkg/auth/authorizer/rbac/rbac.go, pkg/registry/rbac/validation/rule.go).

use chrono::{SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};

use super::kind::{Id, Kind};
use super::object::{list, text};
use super::status::Refusal;
use super::store::State;

/// User with all permissions (group `system:masters`).
pub(super) const ADMIN: &str = "kubernetes-admin";

/// Attributes of a request for authorization.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes<'a> {
    pub(super) verb: &'a str,
    pub(super) kind: &'a Kind,
    pub(super) subresource: &'a str,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
}

impl State {
    /// Issues a token for a service account (pkg/registry/core/serviceaccount/storage/token.go). Unlike the
    /// real one, it does not expire.
    pub(super) fn request_token(
        &mut self,
        namespace: &str,
        name: &str,
        mut request: Value,
    ) -> Result<Value, Refusal> {
        let kind = self.kind("", "v1", "serviceaccounts")?;
        self.read(&kind, namespace, name)?;
        let seconds = request["spec"]["expirationSeconds"].as_i64().unwrap_or(3600);
        let expires = Utc::now() + TimeDelta::seconds(seconds);
        request["status"] = json!({
            "token": self.tokens.issue(&format!("system:serviceaccount:{namespace}:{name}")),
            "expirationTimestamp": expires.to_rfc3339_opts(SecondsFormat::Secs, true),
        });
        Ok(request)
    }

    pub(super) fn authorize(&self, user: &str, wanted: Attributes<'_>) -> Result<(), Refusal> {
        if user == ADMIN || self.granted(user, wanted) {
            return Ok(());
        }
        let Attributes { verb, kind, subresource, namespace, name } = wanted;
        let resource = resource(kind, subresource);
        let place = if namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace \"{namespace}\"")
        };
        let why = format!(
            "User \"{user}\" cannot {verb} resource \"{resource}\" in API group \"{}\" {place}",
            kind.group
        );
        Err(Refusal::forbidden(kind, name, &why))
    }

    fn granted(&self, user: &str, wanted: Attributes<'_>) -> bool {
        const GROUP: &str = "rbac.authorization.k8s.io";
        let cluster = self.all(GROUP, "clusterrolebindings", "");
        let local = (!wanted.namespace.is_empty()).then(|| self.all(GROUP, "rolebindings", wanted.namespace));
        cluster.chain(local.into_iter().flatten()).any(|binding| {
            let bound = list(binding, "/subjects").iter().any(|subject| is_subject(subject, user));
            let role = text(binding, "/roleRef/name");
            let id = match text(binding, "/roleRef/kind") {
                "Role" => Id::new(GROUP, "roles", text(binding, "/metadata/namespace"), role),
                _ => Id::new(GROUP, "clusterroles", "", role),
            };
            bound
                && self
                    .get(&id)
                    .is_some_and(|role| list(role, "/rules").iter().any(|rule| allows(rule, wanted)))
        })
    }
}

fn resource(kind: &Kind, subresource: &str) -> String {
    if subresource.is_empty() { kind.plural.clone() } else { format!("{}/{subresource}", kind.plural) }
}

/// Reports whether `user` is a subject of a binding. A service account is the user
/// `system:serviceaccount:<namespace>:<name>`, and is in two groups of service accounts.
fn is_subject(subject: &Value, user: &str) -> bool {
    let (kind, name, namespace) =
        (text(subject, "/kind"), text(subject, "/name"), text(subject, "/namespace"));
    let account = user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    match kind {
        "ServiceAccount" => account == Some((namespace, name)),
        "User" => user == name,
        "Group" => match account {
            Some((of, _)) => {
                name == "system:serviceaccounts"
                    || name == "system:authenticated"
                    || name.strip_prefix("system:serviceaccounts:") == Some(of)
            }
            None => name == "system:authenticated" && user != "system:anonymous",
        },
        _ => false,
    }
}

fn allows(rule: &Value, wanted: Attributes<'_>) -> bool {
    let any = |pointer: &str, wanted: &[&str]| {
        list(rule, pointer)
            .iter()
            .filter_map(Value::as_str)
            .any(|given| given == "*" || wanted.contains(&given))
    };
    let resource = resource(wanted.kind, wanted.subresource);
    let every = format!("*/{}", wanted.subresource);
    let resources: &[&str] = if wanted.subresource.is_empty() { &[&resource] } else { &[&resource, &every] };
    let names = list(rule, "/resourceNames");
    any("/verbs", &[wanted.verb])
        && any("/apiGroups", &[&wanted.kind.group])
        && any("/resources", resources)
        && (names.is_empty() || names.iter().any(|name| name == wanted.name))
}
