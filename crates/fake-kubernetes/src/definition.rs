//! Definitions of custom resources (apiextensions-apiserver pkg/apis/apiextensions/validation/validation.go).

use std::sync::Arc;

use serde_json::Value;

use super::cause::Cause;
use super::custom::Custom;
use super::kind::{Form, Kind};
use super::object::{list, meta, text};

/// Returns the kinds of a definition, one per served version, or the reasons why it is invalid.
pub(super) fn kinds(definition: &Value) -> Result<Vec<Arc<Kind>>, Vec<Cause>> {
    let mut causes = Vec::new();
    let (group, plural) = (text(definition, "/spec/group"), text(definition, "/spec/names/plural"));
    if meta(definition, "name") != format!("{plural}.{group}") {
        let name = Value::from(meta(definition, "name"));
        causes.push(Cause::invalid("metadata.name", &name, "must be spec.names.plural+\".\"+spec.group"));
    }
    let versions = list(definition, "/spec/versions");
    if versions.iter().filter(|version| version["storage"] == true).count() != 1 {
        let why = "must have exactly one version marked as storage version";
        causes.push(Cause::invalid("spec.versions", &versions.len().into(), why));
    }
    let mut kinds = Vec::new();
    for (at, version) in versions.iter().enumerate() {
        let path = format!("spec.versions[{at}].schema.openAPIV3Schema");
        let Some(schema) = version.pointer("/schema/openAPIV3Schema") else {
            causes.push(Cause::required(&path, "schemas are required"));
            continue;
        };
        let custom = match Custom::new(schema) {
            Ok(custom) => custom,
            Err(found) => {
                causes.extend(found);
                continue;
            }
        };
        if version["served"] != true {
            continue;
        }
        let status = version.pointer("/subresources/status").is_some();
        kinds.push(Arc::new(Kind {
            group: group.to_owned(),
            version: text(version, "/name").to_owned(),
            kind: text(definition, "/spec/names/kind").to_owned(),
            plural: plural.to_owned(),
            namespaced: text(definition, "/spec/scope") == "Namespaced",
            status,
            generation: true,
            unconditional: false,
            upsert: false,
            form: Form::Custom(Arc::new(custom)),
        }));
    }
    if causes.is_empty() { Ok(kinds) } else { Err(causes) }
}
