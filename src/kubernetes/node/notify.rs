//! Creates events about pods and image caches on this node, each once.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;

use crate::kubernetes::events::{MAX_NOTE, Report, Reporter};
use larder_model::escape::escape_to;

/// Maximum number of events that are remembered.
const MAX_REMEMBERED: usize = 4096;

/// Creates events and skips those that it has already created.
#[derive(Debug)]
pub(super) struct Notifier {
    reporter: Reporter,
    sent: HashSet<(String, &'static str, String)>,
}

/// The kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    Attached,
    /// The image cache does not exist, is not for this namespace, or contains none of the images.
    Refused,
    /// The image cache was not attached within the expected time.
    Late,
    Failed,
}

impl Notice {
    fn reason(self) -> &'static str {
        match self {
            Notice::Attached => "ImageCacheAttached",
            Notice::Refused => "ImageCacheRefused",
            Notice::Late => "ImageCacheLate",
            Notice::Failed => "ImageCacheFailed",
        }
    }
}

impl Notifier {
    pub(super) fn new(client: Client, node: &str) -> Self {
        Notifier { reporter: Reporter::new(client, "larder.dev/node", node), sent: HashSet::new() }
    }

    /// Creates an event, unless it was created before.
    pub(super) fn notify(&mut self, about: &ObjectReference, notice: Notice, note: &str) {
        let note = escape_to(note, MAX_NOTE);
        if self.sent.len() >= MAX_REMEMBERED {
            self.sent.clear();
        }
        if !self.sent.insert((about.uid.clone().unwrap_or_default(), notice.reason(), note.clone())) {
            return;
        }
        let report = Report {
            suffix: None,
            warning: notice != Notice::Attached,
            action: "Attach",
            reason: notice.reason().to_owned(),
            note,
        };
        self.reporter.report(about, report);
    }
}
