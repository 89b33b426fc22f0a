//! Events (`events.k8s.io/v1`) about pods and image caches, as `kubectl describe` shows them. Events can be
//! lost, and nothing depends on them.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};

use super::client::ApiServer;
use super::fault::{Fault, TIMEOUT};
use super::names::MANAGER;
use larder_model::escape::escape_to;

/// Maximum length of a note, characters. The API server accepts 1024 bytes
/// (pkg/apis/core/validation/events.go).
pub(super) const MAX_NOTE: usize = 250;
/// Maximum length of the name of the reporting instance, characters (the same file).
const MAX_INSTANCE: usize = 128;

/// The variable part of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Report {
    /// Second part of the event's name, after the name of the object. Two processes that report the same
    /// event use the same name, and the API server creates it once. With `None`, the API server generates the
    /// name.
    pub(super) suffix: Option<String>,
    /// `true` for a warning, which a person should act on.
    pub(super) warning: bool,
    /// The action, in one word.
    pub(super) action: &'static str,
    /// The reason, in one word, for programs.
    pub(super) reason: String,
    /// Explanation of the event for people.
    pub(super) note: String,
}

/// Creates events in the name of one process. kube's recorder would treat an event with another note as a
/// repetition.
#[derive(Debug)]
pub(super) struct Reporter {
    client: ApiServer,
    controller: &'static str,
    instance: String,
}

impl Reporter {
    /// Returns a reporter for the controller `controller`, of which this process is `instance`.
    pub(super) fn new(client: Client, controller: &'static str, instance: &str) -> Self {
        let instance = instance.chars().take(MAX_INSTANCE).collect();
        Reporter { client: client.into(), controller, instance }
    }

    /// Creates an event about an object, in the background.
    pub(super) fn report(&self, about: &ObjectReference, report: Report) {
        let event = self.event(about, report);
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        tokio::spawn(async move {
            let parameters = PostParams::default();
            match tokio::time::timeout(TIMEOUT, api.create(&parameters, &event)).await {
                Ok(Err(error)) => {
                    let fault = Fault::new("creating an event", error);
                    // Another process, or this one before a restart, has reported it. A namespace that is
                    // being deleted accepts no events.
                    if !fault.already_exists() && !fault.is_not_found() {
                        tracing::warn!("{fault}");
                    }
                }
                Err(_) => tracing::warn!("creating an event: no answer within {} s", TIMEOUT.as_secs()),
                Ok(Ok(_)) => {}
            }
        });
    }

    fn event(&self, about: &ObjectReference, report: Report) -> Event {
        let object = about.name.as_deref().unwrap_or(MANAGER);
        Event {
            metadata: ObjectMeta {
                // The part before the generated suffix must be a valid name (pkg/apis/core/validation), so it
                // cannot end with a dot.
                generate_name: report.suffix.is_none().then(|| format!("{object}-")),
                name: report.suffix.map(|suffix| format!("{object}.{suffix}")),
                namespace: Some(about.namespace.clone().unwrap_or_else(|| "default".to_owned())),
                ..ObjectMeta::default()
            },
            action: Some(report.action.to_owned()),
            event_time: Some(MicroTime(Timestamp::now())),
            note: Some(escape_to(&report.note, MAX_NOTE)),
            reason: Some(report.reason),
            regarding: Some(about.clone()),
            reporting_controller: Some(self.controller.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            type_: Some(if report.warning { "Warning" } else { "Normal" }.to_owned()),
            ..Event::default()
        }
    }
}
