//! Events about pods and image caches on this node, each created once.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;

use crate::kubernetes::events::{MAX_NOTE, Report, Reporter};
use larder_model::escape::escape_to;

/// Maximum number of events that are remembered.
const REMEMBERED: usize = 4096;

/// Creates events, unless it has created the same before.
#[derive(Debug)]
pub(super) struct Teller {
    reporter: Reporter,
    told: HashSet<(String, &'static str, String)>,
}

/// What there is to report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    Attached,
    /// It is not there, not this namespace's, or holds none of the images.
    Refused,
    /// It does not come for long.
    Late,
    Failed,
}

impl News {
    fn reason(self) -> &'static str {
        match self {
            News::Attached => "ImageCacheAttached",
            News::Refused => "ImageCacheRefused",
            News::Late => "ImageCacheLate",
            News::Failed => "ImageCacheFailed",
        }
    }
}

impl Teller {
    pub(super) fn new(client: Client, node: &str) -> Self {
        Teller { reporter: Reporter::new(client, "larder.dev/node", node), told: HashSet::new() }
    }

    /// Creates the event, once.
    pub(super) fn tell(&mut self, about: &ObjectReference, news: News, note: &str) {
        let note = escape_to(note, MAX_NOTE);
        if self.told.len() >= REMEMBERED {
            self.told.clear();
        }
        if !self.told.insert((about.uid.clone().unwrap_or_default(), news.reason(), note.clone())) {
            return;
        }
        let report = Report {
            suffix: None,
            warning: news != News::Attached,
            action: "Attach",
            reason: news.reason().to_owned(),
            note,
        };
        self.reporter.report(about, report);
    }
}
