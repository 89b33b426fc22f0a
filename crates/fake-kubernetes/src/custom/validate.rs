//! Validation of values against a schema (kube-openapi pkg/validation/validate; the messages are from
//! apiextensions-apiserver pkg/apiserver/validation/validation.go).

use std::collections::BTreeSet;

use regex::Regex;
use serde_json::Value;

use super::Cause;

pub(super) fn schema(value: &Value, schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    let at = if path.is_empty() { "<nil>" } else { path };
    if value.is_null() && schema["nullable"] == true {
        return;
    }
    let int_or_string = schema["x-kubernetes-int-or-string"] == true;
    let wanted = schema["type"].as_str().unwrap_or_default();
    let fits = match wanted {
        _ if int_or_string => value.is_i64() || value.is_u64() || value.is_string(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0),
        "number" => value.is_number(),
        _ => true,
    };
    if !fits {
        let found = sort(value);
        let text = format!("Invalid value: \"{found}\": {at} in body must be of type {wanted}: \"{found}\"");
        causes.push(Cause::new("FieldValueTypeInvalid", at, text));
        return;
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        let allowed: Vec<_> = allowed.iter().map(|v| v.as_str().unwrap_or("?")).collect();
        causes.push(Cause::unsupported(at, value, &allowed));
    }
    match value {
        Value::String(text) => string(text, schema, at, causes),
        Value::Number(_) => number(value, schema, at, causes),
        Value::Array(items) => list(items, schema, at, causes),
        Value::Object(_) => object(value, schema, path, causes),
        _ => {}
    }
    junctors(value, schema, at, causes);
}

fn string(text: &str, schema: &Value, at: &str, causes: &mut Vec<Cause>) {
    let shown = Value::from(text);
    let length = text.chars().count() as u64;
    if let Some(most) = schema["maxLength"].as_u64().filter(|most| length > *most) {
        let message = format!("Too long: may not be more than {most} bytes");
        causes.push(Cause::new("FieldValueTooLong", at, message));
    }
    if let Some(least) = schema["minLength"].as_u64().filter(|least| length < *least) {
        causes.push(Cause::invalid(
            at,
            &shown,
            &format!("{at} in body should be at least {least} chars long"),
        ));
    }
    if let Some(pattern) = schema["pattern"].as_str() {
        let found = Regex::new(pattern).map(|regex| regex.is_match(text));
        if !found.unwrap_or(false) {
            causes.push(Cause::invalid(at, &shown, &format!("{at} in body should match '{pattern}'")));
        }
    }
    let format = schema["format"].as_str().unwrap_or_default();
    let fits = match format {
        "date-time" => chrono::DateTime::parse_from_rfc3339(text).is_ok(),
        "uuid" => uuid::Uuid::parse_str(text).is_ok(),
        _ => true,
    };
    if !fits {
        causes.push(Cause::invalid(at, &shown, &format!("{at} in body must be of type {format}: {shown}")));
    }
}

fn number(value: &Value, schema: &Value, at: &str, causes: &mut Vec<Cause>) {
    let number = value.as_f64().unwrap_or_default();
    if let Some(least) = schema["minimum"].as_f64() {
        let exclusive = schema["exclusiveMinimum"] == true;
        if number < least || (exclusive && number <= least) {
            let than = if exclusive { "greater than" } else { "greater than or equal to" };
            causes.push(Cause::invalid(at, value, &format!("{at} in body should be {than} {least}")));
        }
    }
    if let Some(most) = schema["maximum"].as_f64() {
        let exclusive = schema["exclusiveMaximum"] == true;
        if number > most || (exclusive && number >= most) {
            let than = if exclusive { "less than" } else { "less than or equal to" };
            causes.push(Cause::invalid(at, value, &format!("{at} in body should be {than} {most}")));
        }
    }
    let range = match schema["format"].as_str() {
        Some("int32") => Some((f64::from(i32::MIN), f64::from(i32::MAX))),
        Some("uint32") => Some((0.0, f64::from(u32::MAX))),
        _ => None,
    };
    if range.is_some_and(|(least, most)| number < least || number > most) {
        let message = format!(
            "{at} in body must be of type {}: {value}",
            schema["format"].as_str().unwrap_or_default()
        );
        causes.push(Cause::invalid(at, value, &message));
    }
}

fn list(items: &[Value], of: &Value, at: &str, causes: &mut Vec<Cause>) {
    let count = items.len() as u64;
    if let Some(most) = of["maxItems"].as_u64().filter(|most| count > *most) {
        let message = format!("Too many: {count}: must have at most {most} items");
        causes.push(Cause::new("FieldValueTooMany", at, message));
    }
    if let Some(least) = of["minItems"].as_u64().filter(|least| count < *least) {
        let message = format!("{at} in body should have at least {least} items");
        causes.push(Cause::invalid(at, &count.into(), &message));
    }
    let keys = of["x-kubernetes-list-map-keys"].as_array();
    let mut seen = BTreeSet::new();
    for (index, item) in items.iter().enumerate() {
        let at = format!("{at}[{index}]");
        let identity = match of["x-kubernetes-list-type"].as_str() {
            Some("set") => Some(item.to_string()),
            Some("map") => {
                let values =
                    keys.into_iter().flatten().filter_map(Value::as_str).map(|key| item[key].to_string());
                Some(values.collect::<Vec<_>>().join(","))
            }
            _ => None,
        };
        if identity.is_some_and(|identity| !seen.insert(identity)) {
            causes.push(Cause::new("FieldValueDuplicate", &at, format!("Duplicate value: {item}")));
        }
        schema(item, &of["items"], &at, causes);
    }
}

fn object(value: &Value, of: &Value, path: &str, causes: &mut Vec<Cause>) {
    let Some(fields) = value.as_object() else { return };
    let join = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    for name in of["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !fields.contains_key(name) {
            causes.push(Cause::required(&join(name), ""));
        }
    }
    let count = fields.len() as u64;
    if let Some(most) = of["maxProperties"].as_u64().filter(|most| count > *most) {
        let message = format!("Too many: {count}: must have at most {most} items");
        causes.push(Cause::new("FieldValueTooMany", path, message));
    }
    if let Some(least) = of["minProperties"].as_u64().filter(|least| count < *least) {
        let message = format!("{path} in body should have at least {least} properties");
        causes.push(Cause::invalid(path, &count.into(), &message));
    }
    for (name, child) in fields {
        let known = of["properties"].get(name).or_else(|| of.get("additionalProperties"));
        if let Some(known) = known.filter(|known| known.is_object()) {
            schema(child, known, &join(name), causes);
        }
    }
}

fn junctors(value: &Value, of: &Value, at: &str, causes: &mut Vec<Cause>) {
    let holds = |part: &Value| {
        let mut found = Vec::new();
        schema(value, part, at, &mut found);
        found.is_empty()
    };
    let parts = |junctor: &str| of[junctor].as_array().map(Vec::as_slice);
    let shown = Value::from(sort(value));
    for part in parts("allOf").into_iter().flatten() {
        schema(value, part, at, causes);
    }
    if parts("anyOf").is_some_and(|parts| !parts.iter().any(holds)) {
        causes.push(Cause::invalid(
            at,
            &shown,
            &format!("{at} in body must validate at least one schema (anyOf)"),
        ));
    }
    if parts("oneOf").is_some_and(|parts| parts.iter().filter(|part| holds(part)).count() != 1) {
        let message = format!("{at} in body must validate one and only one schema (oneOf)");
        causes.push(Cause::invalid(at, &shown, &message));
    }
    if of.get("not").is_some_and(holds) {
        causes.push(Cause::invalid(at, &shown, &format!("{at} in body must not validate the schema (not)")));
    }
}

fn sort(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
