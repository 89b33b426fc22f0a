//! Removing images and containers from a node's own store, by the programs that own it.

use std::io;
use std::process::{Command, Stdio};

use super::dependents::{Dependent, Dependents};
use crate::model::escape::escape;

/// They are not removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program does not start.
    #[error("starting podman: {0}: remove them with the program that made them, as in `{1}`")]
    Start(io::Error, String),
    /// The program fails.
    #[error("{command} failed: {said}")]
    Failed {
        /// The command.
        command: String,
        /// Its output.
        said: String,
    },
}

/// The commands that remove what was found, containers first.
pub fn commands(found: &Dependents) -> Vec<Vec<String>> {
    let command = |verb: &str, of_it: &[Dependent]| {
        let words = ["podman", verb, "--force"].into_iter().map(str::to_owned);
        words.chain(of_it.iter().map(|found| found.id.clone())).collect()
    };
    let kinds = [("rm", &found.containers), ("rmi", &found.images)];
    kinds
        .into_iter()
        .filter(|(_, of_it)| !of_it.is_empty())
        .map(|(verb, of_it)| command(verb, of_it))
        .collect()
}

/// Runs these commands.
///
/// # Errors
/// [`Error`]; what was removed until then stays removed.
pub fn remove(found: &Dependents) -> Result<(), Error> {
    for words in commands(found) {
        let command = words.join(" ");
        let output = Command::new(&words[0]).args(&words[1..]).stdin(Stdio::null()).output();
        let output = output.map_err(|error| Error::Start(error, command.clone()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Error::Failed { command, said: escape(said.trim()) });
        }
    }
    Ok(())
}
