//! The disks that are attached to nodes, as a watch last saw them.

use std::collections::HashMap;

use futures_util::StreamExt as _;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::api::Api;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Config, Error, Event};
use kube::{Client, ResourceExt as _};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The known attachments of the cluster.
#[derive(Debug, Default)]
enum Attached {
    /// The first list is not complete.
    #[default]
    Nothing,
    /// Larder is not permitted to list attachments.
    Forbidden,
    /// The PersistentVolume of each VolumeAttachment, by the name of the attachment.
    All(HashMap<String, String>),
}

/// A watch of all VolumeAttachments.
#[derive(Debug)]
pub(super) struct Attachments {
    known: watch::Receiver<Attached>,
    _watch: JoinSet<()>,
}

impl Attachments {
    /// Starts the watch. Must be called inside a Tokio runtime.
    pub(super) fn new(client: &Client) -> Self {
        let (sender, known) = watch::channel(Attached::default());
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
                        sender.send_modify(|known| *known = Attached::All(next));
                    }
                    Ok(Event::Apply(attachment)) => change(&sender, |all| all.extend(disk(&attachment))),
                    Ok(Event::Delete(attachment)) => {
                        change(&sender, |all| drop(all.remove(&attachment.name_any())));
                    }
                    Err(error) if is_forbidden(&error) => {
                        sender.send_modify(|known| *known = Attached::Forbidden)
                    }
                    Err(error) => tracing::warn!("watching volume attachments: {error}"),
                }
            }
        });
        Attachments { known, _watch: tasks }
    }

    /// Waits until a disk is attached to no node. Returns at once without permission to list attachments: the
    /// builder has synced the disk.
    pub(super) async fn detached(&self, disk: &str) {
        let is_off = |known: &Attached| match known {
            Attached::Nothing => false,
            Attached::Forbidden => true,
            Attached::All(all) => !all.values().any(|attached| attached == disk),
        };
        if self.known.clone().wait_for(is_off).await.is_err() {
            // The watch never ends. If it did, the caller's timeout would apply.
            std::future::pending::<()>().await;
        }
    }
}

fn change(known: &watch::Sender<Attached>, change: impl FnOnce(&mut HashMap<String, String>)) {
    known.send_modify(|known| {
        if let Attached::All(all) = known {
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
