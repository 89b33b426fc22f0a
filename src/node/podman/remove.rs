//! Removes images and containers from a node's own store, using the runtime's own program.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use super::dependents::{Dependent, Dependents};
use larder_model::escape::escape;

/// Removing images or containers failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program cannot be started.
    #[error("starting `{command}`: {source}")]
    Start {
        /// The command line of the program.
        command: String,
        /// The error of the system call.
        r#source: io::Error,
    },
    /// The program returned an error.
    #[error("`{command}` failed: {said}")]
    Failed {
        /// The command line of the program.
        command: String,
        /// The output of the program.
        said: String,
    },
}

/// The program that removes images and containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// podman, which also removes images that buildah created.
    Podman,
    /// crictl, the client of CRI-O.
    Crictl,
}

/// Returns the commands that remove the images and containers, containers first.
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

/// Removes the images and containers with podman.
///
/// # Errors
/// [`Error`]; earlier removals are not undone.
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
