//! MutatingAdmissionPolicy on creation (apiserver pkg/admission/plugin/policy/mutating).
//!
//! Conditions are evaluated as CEL. An `applyConfiguration` must be an object initializer of literals
//! (patch/smd.go). It is parsed as CEL and merged by the rules of server-side apply, without an owner for its
//! fields. Everything else fails with an error: other patches, parameters, variables, selectors, and policies
//! for updates.

use kube::core::cel::KubeCelExt as _;
use kube::core::cel::cel::common::ast::{EntryExpr, Expr, IdedEntryExpr, LiteralValue};
use kube::core::cel::cel::parser::Parser;
use kube::core::cel::cel::{Context, IdedExpr, Program, Value as CelValue};
use serde_json::{Map, Value};

use super::super::kind::Kind;
use super::super::managed;
use super::super::object::{list, meta, text};
use super::super::shape::Shape;
use super::super::status::Refusal;
use super::super::store::State;

const GROUP: &str = "admissionregistration.k8s.io";

/// Changes a new object by all policies that have a binding.
pub(in super::super) fn mutate(state: &State, kind: &Kind, object: &mut Value) -> Result<(), Refusal> {
    for policy in state.all(GROUP, "mutatingadmissionpolicies", "") {
        let bindings = state.all(GROUP, "mutatingadmissionpolicybindings", "");
        let is_bound = bindings.into_iter().any(|one| text(one, "/spec/policyName") == meta(policy, "name"));
        if !is_bound || !is_for(policy, kind) {
            continue;
        }
        let changed = changed(policy, kind, object);
        *object = changed.map_err(|why| {
            // generic/policy_dispatcher.go, with `failurePolicy: Fail`.
            let why = format!("policy '{}' with binding denied request: {why}", meta(policy, "name"));
            Refusal::forbidden(kind, meta(object, "name"), &why)
        })?;
    }
    Ok(())
}

fn is_for(policy: &Value, kind: &Kind) -> bool {
    list(policy, "/spec/matchConstraints/resourceRules").iter().any(|rule| {
        let lists =
            |field: &str, wanted: &str| list(rule, field).iter().any(|one| one == wanted || one == "*");
        lists("/apiGroups", &kind.group)
            && lists("/apiVersions", &kind.version)
            && lists("/operations", "CREATE")
            && lists("/resources", &kind.plural)
    })
}

fn changed(policy: &Value, kind: &Kind, object: &Value) -> Result<Value, String> {
    for unknown in ["paramKind", "variables"] {
        if !policy["spec"][unknown].is_null() {
            return Err(format!("{unknown} is not simulated"));
        }
    }
    for condition in list(policy, "/spec/matchConditions") {
        if !holds(text(condition, "/expression"), object)? {
            return Ok(object.clone());
        }
    }
    let mut object = object.clone();
    for mutation in list(policy, "/spec/mutations") {
        let expression = text(mutation, "/applyConfiguration/expression");
        let parsed = Parser::default().parse(expression).map_err(|e| format!("{expression}: {e}"))?;
        let applied = literal(&parsed, "Object")?;
        object = managed::merge(&object, &applied, Shape::of(kind));
    }
    Ok(object)
}

/// Evaluates a condition.
fn holds(expression: &str, object: &Value) -> Result<bool, String> {
    let program = Program::compile(expression).map_err(|e| format!("{expression}: {e}"))?;
    let mut context = Context::default().with_all();
    context.add_variable("object", object).map_err(|e| e.to_string())?;
    match program.execute(&context) {
        Ok(CelValue::Bool(holds)) => Ok(holds),
        other => Err(format!("{expression}: {other:?}")),
    }
}

/// Parses an initializer. The type of each object is the path of its field (smd.go,
/// CheckTypeNamesMatchFieldPathNames).
fn literal(expression: &IdedExpr, path: &str) -> Result<Value, String> {
    match &expression.expr {
        Expr::Struct(object) if object.type_name == path => fields(&object.entries, path),
        Expr::Map(map) => fields(&map.entries, path),
        Expr::List(items) => items.elements.iter().map(|item| literal(item, path)).collect(),
        Expr::Literal(LiteralValue::String(value)) => Ok(value.inner().into()),
        Expr::Literal(LiteralValue::Boolean(value)) => Ok((*value.inner()).into()),
        Expr::Literal(LiteralValue::Int(value)) => Ok((*value.inner()).into()),
        other => Err(format!("{path}: only literals are simulated, not {other:?}")),
    }
}

fn fields(entries: &[IdedEntryExpr], path: &str) -> Result<Value, String> {
    let mut fields = Map::new();
    for entry in entries {
        let (name, value) = match &entry.expr {
            EntryExpr::StructField(field) => (field.field.clone(), &field.value),
            EntryExpr::MapEntry(entry) => match literal(&entry.key, path)? {
                Value::String(key) => (key, &entry.value),
                other => return Err(format!("{path}: the key {other} is not a string")),
            },
        };
        fields.insert(name.clone(), literal(value, &format!("{path}.{name}"))?);
    }
    Ok(fields.into())
}
