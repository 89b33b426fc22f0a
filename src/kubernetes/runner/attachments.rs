//! The disks that are attached to nodes, as a watch saw them last.

use std::collections::HashMap;

use futures_util::StreamExt as _;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::api::Api;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Config, Error, Event};
use kube::{Client, ResourceExt as _};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What is known of the attachments of the cluster.
#[derive(Debug, Default)]
enum Known {
    /// Nothing yet.
    #[default]
    Nothing,
    /// There is no right to look.
    Forbidden,
    /// The PersistentVolume of each VolumeAttachment, by the name of that.
    All(HashMap<String, String>),
}

/// A watch of all VolumeAttachments.
#[derive(Debug)]
pub(super) struct Attachments {
    known: watch::Receiver<Known>,
    _watch: JoinSet<()>,
}

impl Attachments {
    /// Begins to watch. In a runtime.
    pub(super) fn new(client: &Client) -> Self {
        let (sender, known) = watch::channel(Known::default());
        let events = watcher::watcher(Api::<VolumeAttachment>::all(client.clone()), Config::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut events = std::pin::pin!(events.default_backoff());
            let mut next = HashMap::new();
            while let Some(event) = events.next().await {
                match event {
                    Ok(Event::Init) => next.clear(),
                    Ok(Event::InitApply(attachment)) => next.extend(disk(&attachment)),
                    Ok(Event::InitDone) => {
                        let next = std::mem::take(&mut next);
                        sender.send_modify(|known| *known = Known::All(next));
                    }
                    Ok(Event::Apply(attachment)) => change(&sender, |all| all.extend(disk(&attachment))),
                    Ok(Event::Delete(attachment)) => {
                        change(&sender, |all| drop(all.remove(&attachment.name_any())));
                    }
                    Err(error) if is_forbidden(&error) => {
                        sender.send_modify(|known| *known = Known::Forbidden)
                    }
                    Err(error) => tracing::warn!("watching volume attachments: {error}"),
                }
            }
        });
        Attachments { known, _watch: tasks }
    }

    /// Waits until a disk is attached to no node. Without the right to look, it returns at once: the builder has synced the disk.
    pub(super) async fn detached(&self, disk: &str) {
        let is_off = |known: &Known| match known {
            Known::Nothing => false,
            Known::Forbidden => true,
            Known::All(all) => !all.values().any(|attached| attached == disk),
        };
        if self.known.clone().wait_for(is_off).await.is_err() {
            // The watch never ends; if it does, the caller's own limit decides.
            std::future::pending::<()>().await;
        }
    }
}

fn change(known: &watch::Sender<Known>, change: impl FnOnce(&mut HashMap<String, String>)) {
    known.send_modify(|known| {
        if let Known::All(all) = known {
            change(all);
        }
    });
}

fn disk(attachment: &VolumeAttachment) -> Option<(String, String)> {
    Some((attachment.name_any(), attachment.spec.source.persistent_volume_name.clone()?))
}

fn is_forbidden(error: &Error) -> bool {
    let (Error::InitialListFailed(error) | Error::WatchStartFailed(error)) = error else { return false };
    matches!(error, kube::Error::Api(status) if status.code == 403)
}
