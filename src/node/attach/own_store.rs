//! What the node's own image store has on the layers of a volume that is detached.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::error::{Error, io};
use super::{Host, found};
use crate::caches::attachments::Attachment;
use crate::node::podman::dependents::{Dependents, find};
use crate::node::podman::graph_roots::graph_roots;
use crate::node::podman::remove::{self, By};
use crate::node::view;
use crate::volume::seal;
use larder_model::runtime::Runtime;

/// What the caller has agreed to remove.
#[derive(Debug)]
pub(super) struct Agreed {
    needed: Dependents,
    podman: PathBuf,
}

/// Refuses to detach `record` while images or containers of the node need layers that only its volume has, unless the caller has agreed
/// to remove them. Changes nothing.
///
/// # Errors
/// [`Error::OwnStore`] with their names; another [`Error`] if they cannot be read.
pub(super) fn check(
    record: &Attachment,
    others: &[Attachment],
    host: &Host,
    remove_images: bool,
) -> Result<Option<Agreed>, Error> {
    let needed = needed(record, others, host)?;
    if needed.is_empty() {
        return Ok(None);
    }
    let by = needed.to_string();
    let refused = |remedy| Err(Error::OwnStore { at: record.at.clone(), by, remedy });
    match found::program(host, "podman") {
        Some(podman) if host.root == Path::new("/") && remove_images => Ok(Some(Agreed { needed, podman })),
        Some(_) if host.root == Path::new("/") => {
            refused("give --remove-images to remove them, too".to_owned())
        }
        podman => {
            let by = if podman.is_some() { By::Podman } else { By::Crictl };
            refused(format!("remove them on the node with `{}`, then detach again", commands(&needed, by)))
        }
    }
}

impl Agreed {
    /// Removes the images and containers.
    pub(super) fn remove(&self) -> Result<(), Error> {
        Ok(remove::remove(&self.needed, &self.podman)?)
    }
}

/// What stands on layers that no other attached store has.
fn needed(record: &Attachment, others: &[Attachment], host: &Host) -> Result<Dependents, Error> {
    let mut needed = Dependents::default();
    // Without its mount nobody could use the volume, and its layers are not known.
    let Ok(sealed) = seal::read(&record.at) else { return Ok(needed) };
    if !is_store(record) {
        return Ok(needed);
    }
    let mut only: HashSet<String> = view::layer_ids(&sealed.content).collect();
    for other in others.iter().filter(|other| is_store(other)) {
        // Layers of the other form have other short names, which what stands on them has written down.
        match seal::read(&other.at) {
            Ok(other) if other.content.layer_format == sealed.content.layer_format => {
                for id in view::layer_ids(&other.content) {
                    only.remove(&id);
                }
            }
            _ => {}
        }
    }
    for graph_root in graph_roots(&host.root).map_err(io("reading configuration below", &host.root))? {
        needed.extend(find(&host.path(&graph_root), &only)?);
    }
    Ok(needed)
}

fn is_store(record: &Attachment) -> bool {
    record.runtimes.iter().any(|runtime| matches!(runtime, Runtime::Podman | Runtime::Crio))
}

/// What the operator runs.
fn commands(needed: &Dependents, by: By) -> String {
    let commands: Vec<String> = remove::commands(needed, by).iter().map(|words| words.join(" ")).collect();
    commands.join("; ")
}
