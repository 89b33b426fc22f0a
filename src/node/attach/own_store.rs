//! Images and containers in the node's own image store that need a volume.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::{Host, installed};
use crate::caches::attachments::Attachment;
use crate::node::podman::dependents::{Dependents, find};
use crate::node::podman::graph_roots::graph_roots;
use crate::node::podman::remove::{self, By};
use crate::node::view;
use crate::volume::seal;
use larder_model::io_error::Context as _;
use larder_model::runtime::Runtime;

/// The images and containers that the caller has agreed to remove.
#[derive(Debug)]
pub(super) struct Agreed {
    needed: Dependents,
    podman: PathBuf,
}

/// Fails if images or containers of the node need layers that only the volume of `record` has, unless the
/// caller has agreed to remove them. Changes nothing.
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
    match installed::program(host, "podman") {
        Some(podman) if host.root == Path::new("/") && remove_images => Ok(Some(Agreed { needed, podman })),
        Some(_) if host.root == Path::new("/") => {
            refused("use --remove-images to remove them as well".to_owned())
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

/// Returns the images and containers that use layers of no other attached store.
fn needed(record: &Attachment, others: &[Attachment], host: &Host) -> Result<Dependents, Error> {
    let mut needed = Dependents::default();
    // An unmounted volume has no users, and its layers are unknown.
    let Ok(sealed) = seal::read(&record.at) else { return Ok(needed) };
    if !is_store(record) {
        return Ok(needed);
    }
    let mut only: HashSet<String> = view::layer_ids(&sealed.content).collect();
    for other in others.iter().filter(|other| is_store(other)) {
        // Layers of the other format have other short names, which the dependents have stored.
        match seal::read(&other.at) {
            Ok(other) if other.content.layer_format == sealed.content.layer_format => {
                for id in view::layer_ids(&other.content) {
                    only.remove(&id);
                }
            }
            _ => {}
        }
    }
    for graph_root in graph_roots(&host.root).context("reading configuration below", host.root.display())? {
        needed.extend(find(&host.path(&graph_root), &only).map_err(Error::Dependents)?);
    }
    Ok(needed)
}

fn is_store(record: &Attachment) -> bool {
    record.runtimes.iter().any(|runtime| matches!(runtime, Runtime::Podman | Runtime::Crio))
}

/// Formats the commands for the operator.
fn commands(needed: &Dependents, by: By) -> String {
    let commands: Vec<String> = remove::commands(needed, by).iter().map(|words| words.join(" ")).collect();
    commands.join("; ")
}
