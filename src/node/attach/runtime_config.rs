//! The runtime configuration for the attached volumes: Larder's drop-in files, and hints for the operator.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::Error;
use super::{Host, installed};
use crate::caches::attachments::Attachment;
use crate::node::containerd::config::{self, Loading, Node, Snapshotter, Version, Wanted};
use crate::node::file::File;
use crate::node::{content_cache, podman};
use larder_model::runtime::{Containerd, Runtime};
use larder_sys::release;

/// Drop-in files and hints.
#[derive(Debug, Default)]
pub(super) struct RuntimeConfig {
    pub(super) files: Vec<File>,
    pub(super) advice: Vec<String>,
}

/// Returns the configuration for the attached volumes `attached`.
pub(super) fn all(host: &Host, attached: &[Attachment]) -> Result<RuntimeConfig, Error> {
    let mut result = RuntimeConfig::default();
    containerd(host, attached, &mut result)?;
    podman(host, attached, &mut result)?;
    Ok(result)
}

/// Adds the configuration of podman, buildah and CRI-O.
fn podman(host: &Host, attached: &[Attachment], result: &mut RuntimeConfig) -> Result<(), Error> {
    let is_for = |record: &Attachment, runtime| record.runtimes.contains(&runtime);
    let any = |runtime| attached.iter().any(|record| is_for(record, runtime));
    let consumers = podman::config::Consumers { podman: any(Runtime::Podman), crio: any(Runtime::Crio) };
    let mut of_it: Vec<&Attachment> = attached
        .iter()
        .filter(|record| is_for(record, Runtime::Podman) || is_for(record, Runtime::Crio))
        .collect();
    of_it.sort_by_key(|record| (record.since, &record.at));
    let stores: Vec<PathBuf> =
        of_it.iter().flat_map(|record| record.image_stores()).map(Path::to_owned).collect();
    let change = podman::config::change(&podman::node::Node::read(&host.root)?, consumers, &stores);
    result.files.extend(change.files.into_iter().map(|(path, text)| File::new(host.root.join(path), text)));
    result.advice.extend(change.advice);
    Ok(())
}

fn containerd(host: &Host, attached: &[Attachment], result: &mut RuntimeConfig) -> Result<(), Error> {
    let path = host.path(config::PATH);
    let mut of_it: Vec<&Attachment> = attached.iter().filter(|record| record.containerd.is_some()).collect();
    of_it.sort_by_key(|record| std::cmp::Reverse(record.since));
    let Some(containerd) = of_it.first().and_then(|newest| newest.containerd.as_ref()) else {
        result.files.push(File::new(path, None));
        return Ok(());
    };
    let version = match version(host, containerd) {
        Ok(version) => version,
        // At boot, containerd is not running yet. The file from the last time is still valid.
        Err(_) if path.exists() => return Ok(()),
        Err(error) => return Err(error),
    };
    let node = Node::read(&host.root, config::MAIN.as_ref(), config::PATH.as_ref(), version)?;
    let wanted = wanted(host, &of_it);
    if wanted.content_cache.is_some() {
        result.advice.push(config::settings(makes_images_of_tars(host)));
    }
    let drop_in = node.drop_in(&wanted)?;
    match node.loading() {
        Loading::Counts => {}
        Loading::NotImported { remedy } => {
            result.advice.push(format!("containerd does not load Larder's drop-in file: {remedy}"))
        }
        Loading::Overridden { by } => result.advice.push(format!(
            "{} overrides {}: change the setting there",
            by.display(),
            config::PATH
        )),
    }
    let file = File {
        mode: config::MODE,
        shown: Some(drop_in.shown().to_owned()),
        ..File::new(path, Some(drop_in.text().to_owned()))
    };
    if file.differs()? {
        result
            .advice
            .push("containerd reads its configuration at startup: systemctl restart containerd".to_owned());
    }
    result.files.push(file);
    Ok(())
}

/// Returns the requirements of the volumes. The snapshotter of the newest volume becomes CRI's snapshotter,
/// if it is Larder's.
fn wanted(host: &Host, newest_first: &[&Attachment]) -> Wanted {
    let mut wanted = Wanted {
        content_cache: newest_first
            .iter()
            .any(|record| content_cache::has(record))
            .then(|| host.content_cache.clone()),
        ..Wanted::default()
    };
    for name in newest_first.iter().filter_map(|record| Some(&record.containerd.as_ref()?.snapshotter)) {
        let is_known = wanted.snapshotters.iter().any(|snapshotter| snapshotter.name == *name);
        if name != Containerd::EROFS && !is_known {
            let (socket, root) = (host.socket.clone(), host.snapshots.clone());
            let remaps_ids = release::is_at_least(5, 19);
            wanted.snapshotters.push(Snapshotter { name: name.clone(), socket, root, remaps_ids });
        }
    }
    wanted
}

/// Reports whether the node's `mkfs.erofs` supports the options that containerd uses.
fn makes_images_of_tars(host: &Host) -> bool {
    // A program of another root might not run here.
    let program = installed::program(host, "mkfs.erofs").filter(|_| host.root.as_os_str() == "/");
    program.is_some_and(|program| config::makes_images_of_tars(&program))
}

/// Returns the version of the running containerd, or else of the installed program.
fn version(host: &Host, containerd: &Containerd) -> Result<Version, Error> {
    let said = match crate::node::containerd::block_on(containerd, crate::node::containerd::Client::version) {
        Ok(said) => said,
        Err(error) => {
            // A program of another root might not run here.
            let program = installed::program(host, "containerd").filter(|_| host.root.as_os_str() == "/");
            let printed = program.and_then(|program| Command::new(program).arg("--version").output().ok());
            printed
                .map(|out| String::from_utf8_lossy(&out.stdout).into_owned())
                .ok_or(Error::Version(error.to_string()))?
        }
    };
    said.parse().map_err(|error: config::UnknownVersion| Error::Version(error.to_string()))
}
