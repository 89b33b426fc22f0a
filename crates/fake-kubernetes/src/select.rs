//! Label and field selectors (apimachinery pkg/labels/selector.go, pkg/fields/selector.go).

use serde_json::Value;

use super::kind::Kind;
use super::object::text;
use super::status::Refusal;

/// Selector of objects for a list or watch.
#[derive(Clone, Debug, Default)]
pub(super) struct Selection {
    labels: Vec<Requirement>,
    fields: Vec<(String, bool, String)>,
}

#[derive(Clone, Debug)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

impl Selection {
    pub(super) fn new(kind: &Kind, labels: &str, fields: &str) -> Result<Self, Refusal> {
        let labels = split(labels).into_iter().map(requirement).collect::<Result<_, _>>();
        let labels =
            labels.map_err(|why| Refusal::bad_request(format!("unable to parse requirement: {why}")))?;
        let mut selection = Selection { labels, fields: Vec::new() };
        for term in fields.split(',').filter(|term| !term.is_empty()) {
            let (name, wanted, value) = if let Some((name, value)) = term.split_once("!=") {
                (name, false, value)
            } else if let Some((name, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
                (name, true, value)
            } else {
                return Err(Refusal::bad_request(format!(
                    "invalid selector: '{term}'; can't understand '{term}'"
                )));
            };
            if !selectable(kind, name) {
                return Err(Refusal::bad_request(format!("field label not supported: {name}")));
            }
            selection.fields.push((name.to_owned(), wanted, value.to_owned()));
        }
        Ok(selection)
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        let label = |name: &str| object["metadata"]["labels"][name].as_str();
        self.labels.iter().all(|requirement| match requirement {
            Requirement::In(name, values) => label(name).is_some_and(|own| values.iter().any(|v| v == own)),
            Requirement::NotIn(name, values) => label(name).is_none_or(|own| values.iter().all(|v| v != own)),
            Requirement::Exists(name) => label(name).is_some(),
            Requirement::Absent(name) => label(name).is_none(),
        }) && self.fields.iter().all(|(name, wanted, value)| {
            (text(object, &format!("/{}", name.replace('.', "/"))) == value) == *wanted
        })
    }

    /// Returns the single name that is selected. RBAC compares it with the resource names of a rule
    /// (apiserver pkg/endpoints/request/requestinfo.go).
    pub(super) fn name(&self) -> Option<&str> {
        let mut names = self.fields.iter().filter(|(name, wanted, _)| name == "metadata.name" && *wanted);
        names.next().map(|(_, _, value)| value.as_str())
    }
}

/// Reports whether a field can be used in a selector: name and namespace of all kinds, and the fields of a
/// kind's strategy (pkg/apis/core/v1/conversion.go, pkg/registry/core/*/strategy.go,
/// pkg/registry/batch/job/strategy.go).
fn selectable(kind: &Kind, field: &str) -> bool {
    let own: &[&str] = match kind.plural.as_str() {
        "pods" => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "status.phase",
            "status.podIP",
        ],
        "namespaces" => &["status.phase"],
        "secrets" => &["type"],
        "jobs" => &["status.successful"],
        _ => &[],
    };
    field == "metadata.name" || (field == "metadata.namespace" && kind.namespaced) || own.contains(&field)
}

/// Splits a selector at commas outside of parentheses.
fn split(selector: &str) -> Vec<&str> {
    let (mut terms, mut depth, mut start) = (Vec::new(), 0u32, 0);
    for (at, sign) in selector.char_indices() {
        match sign {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                terms.push(&selector[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.push(&selector[start..]);
    terms.into_iter().map(str::trim).filter(|term| !term.is_empty()).collect()
}

fn requirement(term: &str) -> Result<Requirement, String> {
    let one = |value: &str| vec![value.trim().to_owned()];
    if let Some((name, list)) = term.split_once('(') {
        let values = list.trim_end_matches(')').split(',').map(|value| value.trim().to_owned()).collect();
        let mut words = name.split_whitespace();
        return match (words.next(), words.next(), words.next()) {
            (Some(name), Some("in"), None) => Ok(Requirement::In(name.to_owned(), values)),
            (Some(name), Some("notin"), None) => Ok(Requirement::NotIn(name.to_owned(), values)),
            _ => Err(term.to_owned()),
        };
    }
    if let Some((name, value)) = term.split_once("!=") {
        return Ok(Requirement::NotIn(name.trim().to_owned(), one(value)));
    }
    if let Some((name, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        return Ok(Requirement::In(name.trim().to_owned(), one(value)));
    }
    match term.strip_prefix('!') {
        Some(name) => Ok(Requirement::Absent(name.trim().to_owned())),
        None if term.contains(char::is_whitespace) => Err(term.to_owned()),
        None => Ok(Requirement::Exists(term.to_owned())),
    }
}
