//! Patches: JSON patch, merge patch and server-side apply (apiserver pkg/endpoints/handlers/patch.go).
//!
//! Strategic merge patches are refused, as for custom resources, because no client here sends them.

use std::sync::Arc;

use serde_json::Value;

use super::super::cause::Cause;
use super::super::kind::{Id, Kind};
use super::super::object::{meta, metadata};
use super::super::shape::Shape;
use super::super::status::Refusal;
use super::super::store::State;
use super::super::{fields, managed};
use super::{Owners, WriteOptions, Written, decode, part, prune_unknown, writer};

/// A patch, parsed according to its media type.
#[derive(Debug)]
pub(in super::super) enum PatchBody {
    Json(json_patch::Patch),
    Merge(Value),
    Apply(Value),
}

impl PatchBody {
    pub(in super::super) fn read(media_type: &str, body: &[u8]) -> Result<Self, Refusal> {
        let unreadable = |e: serde_json::Error| Refusal::bad_request(format!("error decoding patch: {e}"));
        match media_type {
            "application/json-patch+json" => {
                Ok(PatchBody::Json(serde_json::from_slice(body).map_err(unreadable)?))
            }
            "application/merge-patch+json" => {
                Ok(PatchBody::Merge(serde_json::from_slice(body).map_err(unreadable)?))
            }
            // kube sends JSON, which is valid YAML.
            "application/apply-patch+yaml" => {
                Ok(PatchBody::Apply(serde_json::from_slice(body).map_err(unreadable)?))
            }
            other => Err(Refusal::media_type(other)),
        }
    }
}

impl State {
    /// Reports whether this patch would create an object, which requires the permission to create it.
    pub(in super::super) fn patch_creates(&self, id: &Id, patch: &PatchBody) -> bool {
        matches!(patch, PatchBody::Apply(_)) && self.get(id).is_none()
    }

    pub(in super::super) fn patch(
        &mut self,
        kind: &Arc<Kind>,
        id: &Id,
        status: bool,
        patch: PatchBody,
        how: &WriteOptions,
    ) -> Result<Written, Refusal> {
        let live = self.get(id).cloned();
        if let PatchBody::Apply(applied) = patch {
            return self.apply(kind, id, status, live, applied, how);
        }
        let live = live.ok_or_else(|| Refusal::not_found(kind, &id.name))?;
        let mut object = live.as_ref().clone();
        match patch {
            PatchBody::Json(patch) => json_patch::patch(&mut object, &patch.0).map_err(|e| {
                // A failed `test` is 422 (apiserver patch.go, applyJSPatch).
                Refusal::new(
                    422,
                    "Invalid",
                    format!("the server rejected our request due to an error in our request: {e}"),
                )
            })?,
            PatchBody::Merge(patch) => json_patch::merge(&mut object, &patch),
            PatchBody::Apply(_) => return Err(Refusal::internal("unreachable: an apply is handled before")),
        }
        let decoded = decode(kind, &id.namespace, Some(&id.name), object, how.unknown);
        let (object, warnings) = decoded.map_err(into_invalid)?;
        let object = self.commit(kind, id, &live, object, part(kind, status), how, Owners::Note)?;
        Ok(Written { object, created: false, warnings })
    }

    fn apply(
        &mut self,
        kind: &Arc<Kind>,
        id: &Id,
        status: bool,
        live: Option<Arc<Value>>,
        applied: Value,
        how: &WriteOptions,
    ) -> Result<Written, Refusal> {
        if how.manager.is_empty() {
            let cause = Cause::required("fieldManager", "is required for apply patch");
            let mut refusal = Refusal::invalid(kind, "", &[cause]);
            refusal.message =
                "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch"
                    .to_owned();
            return Err(refusal);
        }
        if applied["metadata"].get("managedFields").is_some_and(|given| !given.is_null()) {
            return Err(Refusal::bad_request("metadata.managedFields must be nil"));
        }
        check_declared(kind, &applied)?;
        let (mut applied, warnings) = decode(kind, &id.namespace, Some(&id.name), applied, how.unknown)?;
        let given = (meta(&applied, "uid").to_owned(), meta(&applied, "resourceVersion").to_owned());
        for field in ["uid", "resourceVersion", "generation", "creationTimestamp"] {
            metadata(&mut applied).remove(field);
        }
        let part = part(kind, status);
        let writer = writer(kind, how, part);
        let merged = managed::apply(live.as_deref(), &applied, Shape::of(kind), &writer, how.force);
        let mut merged = merged.map_err(|conflicts| conflict(&conflicts))?;
        let Some(live) = live else {
            if status {
                return Err(Refusal::not_found(kind, &id.name));
            }
            if !given.0.is_empty() {
                let why = format!(
                    "uid mismatch: the provided object specified uid {}, and no existing object was found",
                    given.0
                );
                return Err(Refusal::conflict(kind, &id.name, &why));
            }
            let object = self.insert(kind, &id.namespace, merged, how)?;
            return Ok(Written { object, created: true, warnings });
        };
        let own = metadata(&mut merged);
        for (field, value) in [("uid", given.0), ("resourceVersion", given.1)] {
            if !value.is_empty() {
                own.insert(field.to_owned(), value.into());
            }
        }
        let object = self.commit(kind, id, &live, merged, part, how, Owners::Known)?;
        Ok(Written { object, created: false, warnings })
    }
}

/// Converts a decoding error after a patch to 422; other writes return 400 (apiserver patch.go,
/// applyPatchToCurrentObject).
fn into_invalid(refusal: Refusal) -> Refusal {
    if refusal.code == 400 {
        let message = format!(" \"\" is invalid: patch: Invalid value: {}", refusal.message);
        Refusal::new(422, "Invalid", message)
    } else {
        refusal
    }
}

/// Checks that an applied configuration has only fields that the schema declares, regardless of
/// `fieldValidation` (apimachinery pkg/util/managedfields/internal/structuredmerge.go; a plain error, so
/// 500).
fn check_declared(kind: &Kind, applied: &Value) -> Result<(), Refusal> {
    if !applied.is_object() {
        return Err(Refusal::bad_request("error decoding YAML: not an object"));
    }
    let mut whole = applied.clone();
    whole["apiVersion"] = kind.api_version().into();
    whole["kind"] = kind.kind.clone().into();
    let (_, dropped) = prune_unknown(kind, &whole)?;
    let Some(first) = dropped.first() else { return Ok(()) };
    let place = format!("{}/{}", meta(applied, "namespace"), meta(applied, "name"));
    Err(Refusal::internal(format!(
        "failed to create typed patch object ({place}; {}, Kind={}): .{first}: field not declared in schema",
        kind.api_version(),
        kind.kind
    )))
}

/// Returns the error for conflicts (apimachinery pkg/util/managedfields/internal/conflict.go).
fn conflict(conflicts: &managed::Conflicts) -> Refusal {
    let count = conflicts.len();
    let texts: Vec<_> = conflicts
        .iter()
        .map(|(owner, path)| format!("conflict with {owner}: {}", fields::display(path)))
        .collect();
    let plural = if count == 1 { "" } else { "s" };
    let text = texts.join("\n");
    let mut refusal =
        Refusal::new(409, "Conflict", format!("Apply failed with {count} conflict{plural}: {text}"));
    let causes: Vec<_> = conflicts
        .iter()
        .map(|(owner, path)| {
            serde_json::json!({
                "reason": "FieldManagerConflict", "message": format!("conflict with {owner}"),
                "field": fields::display(path),
            })
        })
        .collect();
    refusal.details = Some(serde_json::json!({"causes": causes}));
    refusal
}
