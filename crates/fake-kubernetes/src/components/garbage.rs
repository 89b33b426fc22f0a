//! Garbage collector and namespace controller (pkg/controller/garbagecollector/garbagecollector.go,
//! pkg/controller/namespace).

use std::collections::HashMap;

use serde_json::Value;

use super::super::kind::Id;
use super::super::object::{deleting, has_finalizer, list, meta, metadata, set_finalizer, text};
use super::super::store::State;
use super::super::write::DeleteOptions;

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
const MANAGER: &str = "kube-controller-manager";

pub(super) fn step(state: &mut State) {
    dependents(state);
    owners(state);
    namespaces(state);
}

/// Deletes objects without remaining owners, and objects that block the foreground deletion of their owner.
fn dependents(state: &mut State) {
    let owners: HashMap<String, Id> =
        state.objects.iter().map(|(id, object)| (meta(object, "uid").to_owned(), id.clone())).collect();
    let dependents: Vec<_> = state
        .objects
        .iter()
        .filter(|(_, object)| !list(object, "/metadata/ownerReferences").is_empty())
        .map(|(id, object)| (id.clone(), object.clone()))
        .collect();
    for (id, object) in dependents {
        // An owner is in the same namespace or cluster-scoped; an owner in another namespace counts as
        // missing.
        let there = |owner: &&Value| {
            let found = owners.get(text(owner, "/uid")).filter(|found| {
                found.name == text(owner, "/name")
                    && (found.namespace.is_empty() || found.namespace == id.namespace)
            });
            found.is_some_and(|found| state.get(found).is_some())
        };
        let waiting = |owner: &&Value| {
            let owner = owners.get(text(owner, "/uid")).and_then(|id| state.get(id));
            owner.is_some_and(|owner| deleting(owner) && has_finalizer(owner, FOREGROUND))
        };
        let references = list(&object, "/metadata/ownerReferences");
        let left: Vec<_> = references.iter().filter(there).collect();
        let solid = left.iter().filter(|owner| !waiting(owner)).count();
        let blocking = left.iter().any(|owner| waiting(owner) && owner["blockOwnerDeletion"] == true);
        if left.is_empty() || (solid == 0 && blocking) {
            if !deleting(&object) {
                let policy =
                    if blocking && owns(state, meta(&object, "uid")) { "Foreground" } else { "Background" };
                let options = DeleteOptions::of(meta(&object, "uid")).propagating(policy);
                delete(state, &id, &options);
            }
        } else if left.len() < references.len() {
            let left: Vec<Value> = left.into_iter().cloned().collect();
            state.amend(&id, false, MANAGER, |object| {
                metadata(object).insert("ownerReferences".to_owned(), left.into());
            });
        }
    }
}

fn owns(state: &State, uid: &str) -> bool {
    state
        .objects
        .values()
        .any(|object| list(object, "/metadata/ownerReferences").iter().any(|owner| owner["uid"] == uid))
}

/// Removes the finalizers of owners that waited for their dependents or orphan them.
fn owners(state: &mut State) {
    let owners: Vec<_> = state
        .objects
        .iter()
        .filter(|(_, object)| deleting(object))
        .filter(|(_, object)| has_finalizer(object, FOREGROUND) || has_finalizer(object, ORPHAN))
        .map(|(id, object)| (id.clone(), object.clone()))
        .collect();
    for (id, owner) in owners {
        let uid = meta(&owner, "uid");
        if has_finalizer(&owner, ORPHAN) {
            let left: Vec<_> = state
                .objects
                .iter()
                .filter(|(_, object)| {
                    list(object, "/metadata/ownerReferences").iter().any(|owner| owner["uid"] == uid)
                })
                .map(|(id, _)| id.clone())
                .collect();
            for dependent in left {
                state.amend(&dependent, false, MANAGER, |object| {
                    if let Some(references) = metadata(object)["ownerReferences"].as_array_mut() {
                        references.retain(|owner| owner["uid"] != uid);
                    }
                });
            }
            state.amend(&id, false, MANAGER, |owner| set_finalizer(owner, ORPHAN, false));
            continue;
        }
        // Only dependents that block are waited for. The others are deleted after the owner.
        let blocked = state.objects.values().any(|object| {
            let references = list(object, "/metadata/ownerReferences");
            references.iter().any(|owner| owner["uid"] == uid && owner["blockOwnerDeletion"] == true)
        });
        if !blocked {
            state.amend(&id, false, MANAGER, |owner| set_finalizer(owner, FOREGROUND, false));
        }
    }
}

/// Deletes the content of namespaces that are being deleted, then the namespaces.
fn namespaces(state: &mut State) {
    let ending: Vec<_> = state
        .all("", "namespaces", "")
        .filter(|namespace| deleting(namespace))
        .map(|namespace| meta(namespace, "name").to_owned())
        .collect();
    for namespace in ending {
        let content: Vec<_> = state
            .objects
            .iter()
            .filter(|(id, _)| id.namespace == namespace)
            .map(|(id, object)| (id.clone(), deleting(object)))
            .collect();
        if content.is_empty() {
            state.take(&Id::new("", "namespaces", "", &namespace));
        }
        for (id, _) in content.into_iter().filter(|(_, deleting)| !deleting) {
            delete(state, &id, &DeleteOptions::default());
        }
    }
}

fn delete(state: &mut State, id: &Id, options: &DeleteOptions) {
    if let Some(kind) = state.kind_of(&id.group, &id.plural) {
        // The object might be gone or replaced by another of the same name: then there is nothing to do.
        let _ = state.delete(&kind, id, options);
    }
}
