//! Removing images and containers from a node's own store, by the programs that own it.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use super::dependents::{Dependent, Dependents};
use larder_model::escape::escape;

/// They are not removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program does not start.
    #[error("starting `{command}`: {source}")]
    Start {
        /// The command.
        command: String,
        /// Why not.
        source: io::Error,
    },
    /// The program fails.
    #[error("`{command}` failed: {said}")]
    Failed {
        /// The command.
        command: String,
        /// Its output.
        said: String,
    },
}

/// The program that removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// podman, also what buildah made.
    Podman,
    /// CRI-O's client.
    Crictl,
}

/// The commands that remove what was found, containers first.
pub fn commands(found: &Dependents, by: By) -> Vec<Vec<String>> {
    let (program, container, image): (_, &[&str], &[&str]) = match by {
        By::Podman => ("podman", &["rm", "--force"], &["rmi", "--force"]),
        By::Crictl => ("crictl", &["rm", "--force"], &["rmi"]),
    };
    let command = |(verb, of_it): (&[&str], &Vec<Dependent>)| {
        let words = [&[program], verb].concat().into_iter().map(str::to_owned);
        words.chain(of_it.iter().map(|found| found.id.clone())).collect()
    };
    let kinds = [(container, &found.containers), (image, &found.images)];
    kinds.into_iter().filter(|(_, of_it)| !of_it.is_empty()).map(command).collect()
}

/// Removes it with podman.
///
/// # Errors
/// [`Error`]; what was removed until then stays removed.
pub fn remove(found: &Dependents, podman: &Path) -> Result<(), Error> {
    for words in commands(found, By::Podman) {
        let command = words.join(" ");
        let output = Command::new(podman).args(&words[1..]).stdin(Stdio::null()).output();
        let output = output.map_err(|source| Error::Start { command: command.clone(), source })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Error::Failed { command, said: escape(said.trim()) });
        }
    }
    Ok(())
}
