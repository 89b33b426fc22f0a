//! Deletion: finalizers, grace periods and preconditions (apiserver pkg/registry/rest/delete.go,
//! pkg/registry/generic/registry/store.go).

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::kind::{Form, Id, Kind};
use super::super::object::{deleting, finalizers, meta, metadata, now, set_finalizer, text};
use super::super::status::Refusal;
use super::super::store::State;

/// `DeleteOptions` of a request, parsed.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct DeleteOptions {
    propagation: String,
    uid: String,
    version: String,
    grace: Option<u64>,
    dry_run: bool,
}

/// Result of a deletion.
#[derive(Debug)]
pub(in super::super) enum Deleted {
    /// The object is deleted; the response is a `Status`.
    Gone(Value),
    /// The object waits for finalizers or its grace period; the response is the object.
    Marked(Arc<Value>),
}

impl DeleteOptions {
    pub(in super::super) fn read(body: &[u8]) -> Result<Self, Refusal> {
        if body.is_empty() {
            return Ok(DeleteOptions::default());
        }
        let body: Value = serde_json::from_slice(body)
            .map_err(|e| Refusal::bad_request(format!("error decoding DeleteOptions: {e}")))?;
        let propagation = text(&body, "/propagationPolicy").to_owned();
        if !matches!(propagation.as_str(), "" | "Background" | "Foreground" | "Orphan") {
            let message = format!(
                "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: \"{propagation}\": \
                 supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\""
            );
            return Err(Refusal::new(422, "Invalid", message));
        }
        Ok(DeleteOptions {
            propagation,
            uid: text(&body, "/preconditions/uid").to_owned(),
            version: text(&body, "/preconditions/resourceVersion").to_owned(),
            grace: body["gracePeriodSeconds"].as_u64(),
            dry_run: body["dryRun"].as_array().is_some_and(|dry| !dry.is_empty()),
        })
    }

    /// Returns options that delete only the object with this uid.
    pub(in super::super) fn of(uid: &str) -> Self {
        DeleteOptions { uid: uid.to_owned(), ..DeleteOptions::default() }
    }

    /// Returns options that delete only the object with this uid, without a grace period.
    pub(in super::super) fn now(uid: &str) -> Self {
        DeleteOptions { grace: Some(0), ..DeleteOptions::of(uid) }
    }

    /// Sets the propagation policy.
    pub(in super::super) fn propagating(self, policy: &str) -> Self {
        DeleteOptions { propagation: policy.to_owned(), ..self }
    }
}

impl State {
    pub(in super::super) fn delete(
        &mut self,
        kind: &Arc<Kind>,
        id: &Id,
        options: &DeleteOptions,
    ) -> Result<Deleted, Refusal> {
        let live = self.get(id).cloned().ok_or_else(|| Refusal::not_found(kind, &id.name))?;
        // rest/delete.go, BeforeDelete; the text is the same in 1.36.
        let same = [
            ("UID", "uid", &options.uid, "deleted and then recreated"),
            ("ResourceVersion", "resourceVersion", &options.version, "modified"),
        ];
        for (word, field, wanted, done) in same {
            if !wanted.is_empty() && wanted != meta(&live, field) {
                let why = format!(
                    "the {word} in the precondition ({wanted}) does not match the {word} in record ({}). The object \
                     might have been {done}",
                    meta(&live, field)
                );
                return Err(Refusal::conflict(kind, &id.name, &why));
            }
        }
        let mut marked = live.as_ref().clone();
        // registry/store.go, deletionFinalizersForGarbageCollection.
        match options.propagation.as_str() {
            "Foreground" => {
                set_finalizer(&mut marked, "orphan", false);
                set_finalizer(&mut marked, "foregroundDeletion", true);
            }
            "Orphan" => {
                set_finalizer(&mut marked, "foregroundDeletion", false);
                set_finalizer(&mut marked, "orphan", true);
            }
            _ if deleting(&live) => {}
            _ => {
                set_finalizer(&mut marked, "orphan", false);
                set_finalizer(&mut marked, "foregroundDeletion", false);
            }
        }
        let grace = grace(kind, &live, options);
        let namespace = kind.is("", "namespaces");
        if finalizers(&marked).is_empty() && grace == 0 && !namespace {
            if !options.dry_run {
                self.take(id);
            }
            return Ok(Deleted::Gone(json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                "details": {"name": id.name, "group": kind.group, "kind": kind.plural, "uid": meta(&live, "uid")},
            })));
        }
        mark(kind, &mut marked, grace);
        if namespace {
            // pkg/registry/core/namespace/storage/storage.go: its controller empties a namespace before it is
            // deleted.
            marked["status"] = json!({"phase": "Terminating"});
        }
        if options.dry_run || marked == *live {
            return Ok(Deleted::Marked(Arc::new(marked)));
        }
        Ok(Deleted::Marked(self.put(id.clone(), marked)))
    }
}

/// Marks an object as deleted (rest/delete.go, BeforeDelete). The grace period can only become shorter.
fn mark(kind: &Kind, object: &mut Value, grace: u64) {
    let before = object["metadata"]["deletionGracePeriodSeconds"].as_u64();
    let generation = object["metadata"]["generation"].as_u64();
    let first = !deleting(object);
    let fields = metadata(object);
    if first {
        fields.insert("deletionTimestamp".to_owned(), now().into());
        if let Some(generation) = generation
            && (kind.generation || matches!(kind.form, Form::Custom(_)))
        {
            fields.insert("generation".to_owned(), (generation + 1).into());
        }
    }
    if before.is_none_or(|before| grace < before) {
        fields.insert("deletionGracePeriodSeconds".to_owned(), grace.into());
    }
}

/// Returns the grace period. Only a scheduled pod that has not ended has one
/// (pkg/registry/core/pod/strategy.go, CheckGracefulDelete).
fn grace(kind: &Kind, live: &Value, options: &DeleteOptions) -> u64 {
    if !kind.is("", "pods") {
        return 0;
    }
    let done = matches!(text(live, "/status/phase"), "Succeeded" | "Failed");
    if done || text(live, "/spec/nodeName").is_empty() {
        return 0;
    }
    options.grace.unwrap_or_else(|| live["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap_or(30))
}
