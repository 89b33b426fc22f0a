//! What people are told: events of pods and of image caches. Events may be lost, and nothing depends on them.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};

use crate::kubernetes::client::ApiServer;
use crate::kubernetes::fault::TIMEOUT;
use crate::kubernetes::names::MANAGER;
use crate::model::escape::escape_to;

/// Longest note, characters; a note has 1024 bytes (pkg/apis/core/validation/events.go).
const LONGEST: usize = 250;
/// Most events that are remembered, so that they are told once.
const REMEMBERED: usize = 4096;

/// Longest name of who reports (the same file).
const REPORTER: usize = 128;

/// Tells events. kube's recorder would count a text as the one before it.
#[derive(Debug)]
pub(super) struct Teller {
    client: ApiServer,
    node: String,
    told: HashSet<(String, &'static str, String)>,
}

/// What there is to tell.
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
        let node = node.chars().take(REPORTER).collect();
        Teller { client: client.into(), node, told: HashSet::new() }
    }

    /// Tells it, once. Nobody waits for it.
    pub(super) fn tell(&mut self, about: &ObjectReference, news: News, note: &str) {
        let note = escape_to(note, LONGEST);
        if self.told.len() >= REMEMBERED {
            self.told.clear();
        }
        if !self.told.insert((about.uid.clone().unwrap_or_default(), news.reason(), note.clone())) {
            return;
        }
        let namespace = about.namespace.as_deref().unwrap_or("default");
        let event = Event {
            metadata: ObjectMeta {
                generate_name: Some(format!("{}-", about.name.as_deref().unwrap_or(MANAGER))),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            action: Some("Attach".to_owned()),
            event_time: Some(MicroTime(Timestamp::now())),
            note: Some(note),
            reason: Some(news.reason().to_owned()),
            regarding: Some(about.clone()),
            reporting_controller: Some("larder.dev/node".to_owned()),
            reporting_instance: Some(self.node.clone()),
            type_: Some(if news == News::Attached { "Normal" } else { "Warning" }.to_owned()),
            ..Event::default()
        };
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        tokio::spawn(async move {
            let parameters = PostParams::default();
            match tokio::time::timeout(TIMEOUT, api.create(&parameters, &event)).await {
                Ok(Err(error)) => tracing::warn!("creating an event: {error}"),
                Err(_) => tracing::warn!("creating an event: no answer within {} s", TIMEOUT.as_secs()),
                Ok(Ok(_)) => {}
            }
        });
    }
}
