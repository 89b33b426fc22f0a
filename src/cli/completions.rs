//! `larder completions` and `larder man`: files for shells and for man(1), from the description of the
//! command line.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use clap_complete::Shell;
use clap_mangen::Man;

use super::output::stdout;
use super::{exit, help};
use crate::telemetry::Console;
use larder_model::class::Class;

/// Prints the completion script for a shell.
pub(super) fn completions(shell: Shell, console: &Console) -> u8 {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut help::command(), env!("CARGO_PKG_NAME"), &mut script);
    stdout::print(console, &String::from_utf8_lossy(&script))
}

/// Writes a man page for each public command into a directory.
pub(super) fn man(dir: &Path, console: &Console) -> u8 {
    let mut command = help::command();
    command.build();
    match write_pages(&command, dir) {
        Ok(()) => 0,
        Err(error) => {
            exit::fail(console, Class::Invalid, &format!("writing man pages to {}: {error}", dir.display()))
        }
    }
}

fn write_pages(command: &clap::Command, dir: &Path) -> std::io::Result<()> {
    // clap sets the display name of a subcommand when it builds the command: larder-cache-ls.
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let mut page = Vec::new();
    Man::new(command.clone()).section("1").manual("Larder Manual").render(&mut page)?;
    let path = dir.join(format!("{name}.1"));
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path)?.write_all(&page)?;
    for child in command.get_subcommands().filter(|child| !child.is_hide_set() && child.get_name() != "help")
    {
        write_pages(child, dir)?;
    }
    Ok(())
}
