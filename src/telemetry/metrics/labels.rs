//! The labels of metrics and their values.

use std::fmt;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use reqwest::StatusCode;

use larder_model::class::Class;
use larder_model::image_cache::Status;

/// The result of a build attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BuildResult {
    /// The volume was sealed.
    Sealed,
    /// The attempt failed permanently.
    Failed,
    /// The attempt failed and will be retried.
    Retried,
    /// The attempt was stopped: cancelled, deleted, or the daemon stopped.
    Stopped,
}

impl BuildResult {
    /// All results of an attempt.
    pub(super) const ALL: [BuildResult; 4] =
        [BuildResult::Sealed, BuildResult::Failed, BuildResult::Retried, BuildResult::Stopped];
}

/// A stage of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Time from the start of the builder to the plan.
    Plan,
    /// Time from the plan to the last committed layer.
    Layers,
    /// Time from the last committed layer to the seal.
    Seal,
}

/// The origin of a committed layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerOrigin {
    /// Fetched from a registry.
    Fetched,
    /// Present from an earlier attempt.
    Present,
    /// Copied from another volume of the tenant.
    Reused,
}

/// The source of the bytes of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ByteSource {
    /// Registries themselves.
    Registry,
    /// Mirrors of registries.
    Mirror,
    /// Imported archives.
    Archive,
    /// Other volumes of the tenant.
    Reused,
    /// An earlier attempt at the same volume.
    Present,
}

/// The state of an image cache on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NodeCache {
    /// Attached, so that containers can use it.
    Attached,
    /// Requested, but not yet attached.
    Waiting,
    /// No longer requested, but not yet detached.
    Leaving,
}

impl NodeCache {
    /// All states on a node.
    pub(super) const ALL: [NodeCache; 3] = [NodeCache::Attached, NodeCache::Waiting, NodeCache::Leaving];
}

macro_rules! label_values {
    ($type:ident { $($variant:ident => $text:literal),+ $(,)? }) => {
        impl EncodeLabelValue for $type {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
                match self {
                    $($type::$variant => $text,)+
                }
                .encode(encoder)
            }
        }
    };
}

label_values!(BuildResult { Sealed => "sealed", Failed => "failed", Retried => "retried", Stopped => "stopped" });
label_values!(Stage { Plan => "plan", Layers => "layers", Seal => "seal" });
label_values!(LayerOrigin { Fetched => "fetched", Present => "present", Reused => "reused" });
label_values!(ByteSource {
    Registry => "registry",
    Mirror => "mirror",
    Archive => "archive",
    Reused => "reused",
    Present => "present",
});
label_values!(NodeCache { Attached => "attached", Waiting => "waiting", Leaving => "leaving" });

/// The status of an image cache as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct StatusValue(pub(super) Status);

impl EncodeLabelValue for StatusValue {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        match self.0 {
            Status::Creating => "creating",
            Status::Available => "available",
            Status::Failed => "failed",
            Status::Unavailable => "unavailable",
            Status::Deleting => "deleting",
        }
        .encode(encoder)
    }
}

/// The class of a failure as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ClassValue(pub(super) Class);

impl EncodeLabelValue for ClassValue {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.0.word().encode(encoder)
    }
}

/// The status of a registry response: a registered one (RFC 9110, 15), or `other`, because registries invent
/// their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Code(Option<StatusCode>);

impl Code {
    pub(super) fn of(code: u16) -> Self {
        Code(StatusCode::from_u16(code).ok().filter(|code| code.canonical_reason().is_some()))
    }
}

impl EncodeLabelValue for Code {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.0.as_ref().map_or("other", StatusCode::as_str).encode(encoder)
    }
}

macro_rules! labels {
    ($name:ident { $($label:ident: $type:ty),+ }) => {
        #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
        pub(super) struct $name {
            $(pub(super) $label: $type),+
        }
    };
}

labels!(ResultLabel { result: BuildResult });
labels!(FailureLabels { class: ClassValue, result: BuildResult });
labels!(SourceLabel { source: ByteSource });
labels!(StageLabel { stage: Stage });
labels!(OriginLabel { origin: LayerOrigin });
labels!(StatusLabel { status: StatusValue });
labels!(NodeCacheLabel { state: NodeCache });
labels!(HostLabel { host: String });
labels!(HostFailureLabels { host: String, class: ClassValue });
labels!(RequestLabels { host: String, code: Code });
labels!(ApiLabels { method: &'static str, route: String, code: u16 });
