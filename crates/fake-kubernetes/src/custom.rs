//! Custom resources: structural schemas and their rules (apiextensions-apiserver pkg/apiserver/schema).
//!
//! This server is stricter than a real one in two ways. It does not accept values on update that were invalid
//! before (ratcheting). It refuses a rule below an unbounded list or map regardless of its cost.

mod validate;

use kube::core::cel::{CompiledSchema, Validator, compile_schema, estimate_rule_cost};
use serde_json::{Map, Value};

use super::cause::Cause;

/// Schema and validation rules of a custom resource.
pub(super) struct Custom {
    schema: Value,
    rules: CompiledSchema,
}

impl std::fmt::Debug for Custom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Custom").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl Custom {
    /// Reads the schema of a definition. Returns the causes for which a server would refuse it.
    pub(super) fn new(schema: &Value) -> Result<Self, Vec<Cause>> {
        let mut causes = Vec::new();
        structural(schema, "openAPIV3Schema", true, true, &mut causes);
        let rules = compile_schema(schema);
        compiled(&rules, "openAPIV3Schema", &mut causes);
        if causes.is_empty() { Ok(Custom { schema: schema.clone(), rules }) } else { Err(causes) }
    }

    pub(super) fn schema(&self) -> &Value {
        &self.schema
    }

    /// Removes fields that are not in the schema and returns their paths.
    pub(super) fn prune(&self, object: &mut Value) -> Vec<String> {
        let mut dropped = Vec::new();
        prune(object, &self.schema, "", true, &mut dropped);
        dropped
    }

    /// Fills in defaults, after removing nulls from fields that are not nullable
    /// (pkg/apiserver/schema/defaulting/prune.go).
    pub(super) fn default(&self, object: &mut Value) {
        default(object, &self.schema);
    }

    /// Returns the validation errors of an object. Rules run only if the object matches the schema.
    pub(super) fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<Cause> {
        let mut causes = Vec::new();
        validate::schema(object, &self.schema, "", &mut causes);
        if !causes.is_empty() {
            return causes;
        }
        let found = Validator::new().validate_compiled(&self.rules, object, old);
        for error in found.err().into_iter().flatten() {
            let text = match error.reason.as_deref() {
                Some("FieldValueForbidden") => format!("Forbidden: {}", error.message),
                Some("FieldValueRequired") => format!("Required value: {}", error.message),
                _ => format!("Invalid value: {}", error.message),
            };
            let field = error.field_path.trim_start_matches('.');
            causes.push(Cause::new(
                "FieldValueInvalid",
                if field.is_empty() { "<nil>" } else { field },
                text,
            ));
        }
        causes
    }
}

fn unknown_kept(schema: &Value) -> bool {
    schema["x-kubernetes-preserve-unknown-fields"] == true
}

fn prune(value: &mut Value, schema: &Value, path: &str, root: bool, dropped: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            let embedded = root || schema["x-kubernetes-embedded-resource"] == true;
            let names: Vec<_> = fields.keys().cloned().collect();
            for name in names {
                if embedded && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
                    continue;
                }
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                let known = schema["properties"].get(&name).or_else(|| schema.get("additionalProperties"));
                match known {
                    Some(Value::Bool(true)) => {}
                    Some(schema) if schema.is_object() => {
                        let child = fields.get_mut(&name).expect("the name is from the keys of the map");
                        prune(child, schema, &path, false, dropped);
                    }
                    _ if unknown_kept(schema) => {}
                    _ => {
                        fields.remove(&name);
                        dropped.push(path);
                    }
                }
            }
        }
        Value::Array(items) => {
            for (at, item) in items.iter_mut().enumerate() {
                prune(item, &schema["items"], &format!("{path}[{at}]"), false, dropped);
            }
        }
        _ => {}
    }
}

fn default(value: &mut Value, schema: &Value) {
    match value {
        Value::Object(fields) => {
            if let Some(properties) = schema["properties"].as_object() {
                for (name, schema) in properties {
                    if fields.get(name).is_some_and(Value::is_null) && schema["nullable"] != true {
                        fields.remove(name);
                    }
                    if let Some(value) = schema.get("default")
                        && !fields.contains_key(name)
                    {
                        fields.insert(name.clone(), value.clone());
                    }
                    if let Some(child) = fields.get_mut(name) {
                        default(child, schema);
                    }
                }
            }
            if let Some(of_values) = schema.get("additionalProperties").filter(|schema| schema.is_object()) {
                let own = |name: &String| schema["properties"].get(name).is_some();
                fields
                    .iter_mut()
                    .filter(|(name, _)| !own(name))
                    .for_each(|(_, child)| default(child, of_values));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| default(item, &schema["items"])),
        _ => {}
    }
}

/// Checks that the schema is structural (pkg/apiserver/schema/validation.go) and its rules are bounded.
fn structural(schema: &Value, path: &str, root: bool, bounded: bool, causes: &mut Vec<Cause>) {
    let Some(fields) = schema.as_object() else {
        causes.push(Cause::required(path, "must be a schema"));
        return;
    };
    let any = unknown_kept(schema) || schema["x-kubernetes-int-or-string"] == true;
    if schema["type"].as_str().is_none_or(str::is_empty) && !any {
        causes.push(Cause::required(
            &format!("{path}.type"),
            if root {
                "must not be empty at the root"
            } else {
                "must not be empty for specified object fields"
            },
        ));
    }
    for unwanted in
        ["$ref", "definitions", "dependencies", "deprecated", "$schema", "id", "patternProperties"]
    {
        if fields.contains_key(unwanted) {
            causes.push(Cause::forbidden(&format!("{path}.{unwanted}"), "not supported"));
        }
    }
    if fields.contains_key("properties") && fields.contains_key("additionalProperties") {
        causes.push(Cause::forbidden(
            &format!("{path}.additionalProperties"),
            "additionalProperties and properties are mutual exclusive",
        ));
    }
    if schema["uniqueItems"] == true {
        causes.push(Cause::forbidden(&format!("{path}.uniqueItems"), "uniqueItems cannot be set to true"));
    }
    if schema["type"] == "array" && !schema["items"].is_object() {
        causes.push(Cause::required(&format!("{path}.items"), "must be specified"));
    }
    for junctor in ["allOf", "anyOf", "oneOf", "not"] {
        let parts = match &schema[junctor] {
            Value::Array(parts) => parts.iter().collect(),
            Value::Null => Vec::new(),
            one => vec![one],
        };
        for part in parts {
            for field in ["type", "default", "description", "nullable", "additionalProperties"] {
                if part.get(field).is_some() && !(any && field == "type") {
                    let why = "must be undefined to be structural";
                    causes.push(Cause::forbidden(&format!("{path}.{junctor}.{field}"), why));
                }
            }
        }
    }
    if !bounded && schema.get("x-kubernetes-validations").is_some() {
        let why = "estimated rule cost exceeds budget: a list or map above has no maxItems or maxProperties";
        causes.push(Cause::forbidden(&format!("{path}.x-kubernetes-validations"), why));
    }
    let empty = Map::new();
    for (name, child) in schema["properties"].as_object().unwrap_or(&empty) {
        if root && name == "metadata" {
            continue;
        }
        structural(child, &format!("{path}.properties[{name}]"), false, bounded, causes);
    }
    if let Some(items) = schema.get("items") {
        let bounded = bounded && schema.get("maxItems").is_some();
        structural(items, &format!("{path}.items"), false, bounded, causes);
    }
    if let Some(values) = schema.get("additionalProperties").filter(|schema| schema.is_object()) {
        let bounded = bounded && schema.get("maxProperties").is_some();
        structural(values, &format!("{path}.additionalProperties"), false, bounded, causes);
    }
}

/// Checks that rules compile and do not cost too much (pkg/apiserver/schema/cel/compilation.go, limits in
/// apiserver/pkg/apis/cel/config.go).
fn compiled(node: &CompiledSchema, path: &str, causes: &mut Vec<Cause>) {
    let at = format!("{path}.x-kubernetes-validations");
    for rule in &node.validations {
        match rule {
            Err(e) => causes.push(Cause::new(
                "FieldValueInvalid",
                &at,
                format!("Invalid value: compilation failed: {e}"),
            )),
            Ok(rule) => {
                for warning in estimate_rule_cost(&rule.rule.rule, node) {
                    causes.push(Cause::forbidden(
                        &at,
                        &format!("estimated rule cost exceeds budget: {}", warning.message),
                    ));
                }
            }
        }
    }
    for (name, child) in &node.properties {
        compiled(child, &format!("{path}.properties[{name}]"), causes);
    }
    if let Some(items) = &node.items {
        compiled(items, &format!("{path}.items"), causes);
    }
    if let Some(values) = &node.additional_properties {
        compiled(values, &format!("{path}.additionalProperties"), causes);
    }
}
