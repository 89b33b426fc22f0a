//! Description of a kind.

use std::sync::Arc;

use serde_json::Value;

use super::custom::Custom;

/// Decodes an object with its type and encodes it again. Unknown fields are lost.
pub(super) type Typed = fn(&Value) -> Result<Value, String>;

/// A kind in one group and version.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) kind: String,
    pub(super) plural: String,
    pub(super) namespaced: bool,
    /// `true` if status is a subresource: writes to the object do not change it, and the other way round.
    pub(super) status: bool,
    /// `true` if `metadata.generation` counts changes of the spec.
    pub(super) generation: bool,
    /// `true` if a replace without resourceVersion is allowed (`AllowUnconditionalUpdate` of the kind's
    /// strategy).
    pub(super) unconditional: bool,
    /// `true` if a replace of an absent object creates it (`AllowCreateOnUpdate`).
    pub(super) upsert: bool,
    pub(super) form: Form,
}

/// Source of the fields of a kind.
#[derive(Clone, Debug)]
pub(super) enum Form {
    BuiltIn(Typed),
    Custom(Arc<Custom>),
}

impl Kind {
    /// Returns the qualified name: `secrets`, `jobs.batch`.
    pub(super) fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// Returns the API version: `v1`, `batch/v1`.
    pub(super) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Returns the identity of an object of this kind.
    pub(super) fn id(&self, namespace: &str, name: &str) -> Id {
        Id {
            group: self.group.clone(),
            plural: self.plural.clone(),
            namespace: if self.namespaced { namespace.to_owned() } else { String::new() },
            name: name.to_owned(),
        }
    }

    pub(super) fn is(&self, group: &str, plural: &str) -> bool {
        self.group == group && self.plural == plural
    }
}

/// Identity of an object. Its order is the order of lists.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Id {
    pub(super) group: String,
    pub(super) plural: String,
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Id {
    pub(super) fn new(group: &str, plural: &str, namespace: &str, name: &str) -> Self {
        Id {
            group: group.to_owned(),
            plural: plural.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    pub(super) fn is(&self, group: &str, plural: &str) -> bool {
        self.group == group && self.plural == plural
    }
}
