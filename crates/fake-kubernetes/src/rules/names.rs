//! Validation of names and metadata (apimachinery pkg/util/validation/validation.go,
//! pkg/api/validation/objectmeta.go).

use serde_json::Value;

use super::super::cause::Cause;
use super::super::kind::Kind;
use super::super::object::{list, meta};

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and \
     must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
     '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
     end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
     '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";

/// Maximum size of all annotations, in bytes.
const MAX_ANNOTATIONS_SIZE: usize = 256 << 10;

pub(super) fn validate(kind: &Kind, object: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    let name = meta(object, "name");
    let shown = Value::from(name);
    if name.is_empty() {
        causes.push(Cause::required("metadata.name", "name or generateName is required"));
    } else if kind.group == "rbac.authorization.k8s.io" {
        // Only path segments are checked: names of RBAC objects can contain colons.
        if name.contains('/') || name.contains('%') || name == "." || name == ".." {
            causes.push(Cause::invalid("metadata.name", &shown, "may not contain '/'"));
        }
    } else if matches!(kind.plural.as_str(), "namespaces" | "services") {
        if !is_label(name) {
            causes.push(Cause::invalid("metadata.name", &shown, LABEL));
        }
    } else if !is_subdomain(name) {
        causes.push(Cause::invalid("metadata.name", &shown, SUBDOMAIN));
    }
    let prefix = meta(object, "generateName");
    // The same rule for the prefix before the five generated characters (pkg/api/validation/generic.go,
    // maskTrailingDash).
    let masked = prefix.strip_suffix('-').map_or(prefix.to_owned(), |start| format!("{start}a"));
    if !prefix.is_empty() && !is_subdomain(&masked) {
        causes.push(Cause::invalid("metadata.generateName", &prefix.into(), SUBDOMAIN));
    }
    labels(&object["metadata"]["labels"], "metadata.labels", &mut causes);
    let annotations = object["metadata"]["annotations"].as_object();
    let size: usize =
        annotations.into_iter().flatten().map(|(k, v)| k.len() + v.as_str().map_or(0, str::len)).sum();
    if size > MAX_ANNOTATIONS_SIZE {
        let message = format!("Too long: may not be more than {MAX_ANNOTATIONS_SIZE} bytes");
        causes.push(Cause::new("FieldValueTooLong", "metadata.annotations", message));
    }
    for (key, _) in annotations.into_iter().flatten() {
        if !is_qualified(&key.to_lowercase()) {
            causes.push(Cause::invalid(
                "metadata.annotations",
                &key.as_str().into(),
                "name part must be valid",
            ));
        }
    }
    for finalizer in list(object, "/metadata/finalizers").iter().filter_map(Value::as_str) {
        let known = matches!(finalizer, "orphan" | "foregroundDeletion" | "kubernetes");
        if !is_qualified(finalizer) {
            causes.push(Cause::invalid(
                "metadata.finalizers",
                &finalizer.into(),
                "name part must be non-empty",
            ));
        } else if !known && !finalizer.contains('/') {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            causes.push(Cause::invalid("metadata.finalizers", &finalizer.into(), why));
        }
    }
    owners(object, &mut causes);
    if let Some(old) = old {
        immutable(old, object, &mut causes);
    }
    causes
}

fn owners(object: &Value, causes: &mut Vec<Cause>) {
    let owners = list(object, "/metadata/ownerReferences");
    for (at, owner) in owners.iter().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().is_none_or(str::is_empty) {
                let path = format!("metadata.ownerReferences[{at}].{field}");
                causes.push(Cause::required(&path, "must not be empty"));
            }
        }
    }
    if owners.iter().filter(|owner| owner["controller"] == true).count() > 1 {
        let why = "Only one reference can have Controller set to true";
        causes.push(Cause::invalid("metadata.ownerReferences", &owners.len().into(), why));
    }
}

fn immutable(old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    for field in ["name", "namespace", "uid"] {
        if old["metadata"].get(field) != new["metadata"].get(field) {
            let path = format!("metadata.{field}");
            causes.push(Cause::invalid(&path, &new["metadata"][field], "field is immutable"));
        }
    }
}

pub(super) fn labels(labels: &Value, path: &str, causes: &mut Vec<Cause>) {
    for (name, value) in labels.as_object().into_iter().flatten() {
        if !is_qualified(name) {
            causes.push(Cause::invalid(
                path,
                &name.as_str().into(),
                "name part must consist of alphanumeric characters",
            ));
        }
        let text = value.as_str().unwrap_or_default();
        if text.len() > 63 {
            causes.push(Cause::invalid(path, value, "must be no more than 63 bytes"));
        } else if !text.is_empty() && !is_name(text) {
            let why = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
                 start and end with an alphanumeric character";
            causes.push(Cause::invalid(path, value, why));
        }
    }
}

/// Reports whether a text has the form `[prefix/]name`.
fn is_qualified(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && name.len() <= 63 && is_name(name),
        None => text.len() <= 63 && is_name(text),
    }
}

/// Reports whether a text has only letters, digits, `-`, `_` and `.`, with letters or digits at both ends.
fn is_name(text: &str) -> bool {
    let ends = |sign: Option<char>| sign.is_some_and(|sign| sign.is_ascii_alphanumeric());
    ends(text.chars().next())
        && ends(text.chars().last())
        && text.chars().all(|sign| sign.is_ascii_alphanumeric() || matches!(sign, '-' | '_' | '.'))
}

pub(super) fn is_label(text: &str) -> bool {
    let sign = |sign: char| sign.is_ascii_lowercase() || sign.is_ascii_digit();
    text.len() <= 63
        && text.starts_with(sign)
        && text.ends_with(sign)
        && text.chars().all(|c| sign(c) || c == '-')
}

fn is_subdomain(text: &str) -> bool {
    let part = |part: &str| {
        let sign = |sign: char| sign.is_ascii_lowercase() || sign.is_ascii_digit();
        part.starts_with(sign) && part.ends_with(sign) && part.chars().all(|c| sign(c) || c == '-')
    };
    text.len() <= 253 && text.split('.').all(part)
}
