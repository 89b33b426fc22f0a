//! Arguments of `larder internal`: the processes that Larder starts itself.
//!
//! They are an interface between processes of one version, so they are no part of the public command line.

use std::ffi::OsString;
use std::iter;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Name of the command, as its first argument.
pub(in crate::cli) const NAME: &str = "internal";

/// The command line of `larder internal`.
#[derive(Debug, Parser)]
#[command(name = "larder internal")]
pub(in crate::cli) struct InternalCli {
    /// Subcommand of `larder internal`
    #[command(subcommand)]
    pub(in crate::cli) command: InternalCommand,
}

/// A process that another `larder` process starts.
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum InternalCommand {
    /// Do one task of a build for its supervisor, which is on standard input
    BuildChild(BuildChildArgs),
    /// Verify a volume for another process, and print the verdict as JSON
    VerifyChild(VerifyChildArgs),
}

/// Arguments of a child process of a build.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(in crate::cli) struct BuildChildArgs {
    /// Task of this process
    #[arg(value_enum)]
    pub(in crate::cli) role: ChildRole,
    /// Process ID of the supervisor
    #[arg(long)]
    pub(in crate::cli) supervisor: u32,
    /// Directory where the supervisor mounted the device
    #[arg(long)]
    pub(in crate::cli) mounted_at: Option<PathBuf>,
    /// Size of the volume in bytes, which the supervisor computed
    #[arg(long)]
    pub(in crate::cli) size: Option<u64>,
    /// Arguments of the supervisor, without the name of the program
    #[arg(last = true, required = true)]
    pub(in crate::cli) arguments: Vec<OsString>,
}

/// Arguments of a process that verifies a volume.
#[derive(Debug, Args)]
pub(in crate::cli) struct VerifyChildArgs {
    /// Directory of the volume
    pub(in crate::cli) volume: PathBuf,
}

/// The task of a child process of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum ChildRole {
    /// Fill the volume: the extractor.
    Fill,
    /// Remove everything that the journal does not list.
    Sweep,
    /// Sweep a disk that was not unmounted cleanly, and verify the remaining layers.
    Prove,
    /// Fetch layers for the extractor.
    Fetch,
    /// Resolve the images, so that the supervisor can compare them or compute a size.
    Resolve,
}

impl BuildChildArgs {
    /// Returns the arguments with which the supervisor starts the process.
    pub(in crate::cli) fn to_arguments(&self) -> Vec<OsString> {
        let supervisor = self.supervisor.to_string();
        let role = ["build-child", self.role.name(), "--supervisor", &supervisor].map(OsString::from);
        let mounted_at = self.mounted_at.iter().flat_map(|path| ["--mounted-at".into(), path.into()]);
        let size = self.size.iter().flat_map(|size| ["--size".into(), size.to_string().into()]);
        let first = iter::once(NAME.into()).chain(role).chain(mounted_at).chain(size);
        first.chain(iter::once("--".into())).chain(self.arguments.iter().cloned()).collect()
    }
}

impl ChildRole {
    pub(in crate::cli) fn name(self) -> &'static str {
        match self {
            ChildRole::Fill => "fill",
            ChildRole::Sweep => "sweep",
            ChildRole::Prove => "prove",
            ChildRole::Fetch => "fetch",
            ChildRole::Resolve => "resolve",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_parses_what_its_supervisor_writes() {
        for role in ChildRole::value_variants() {
            for (mounted_at, size) in [(None, None), (Some("/run/--x".into()), Some(7))] {
                let arguments = ["--config", "c", "build", "--volume", "v", "--", "a:1"].map(OsString::from);
                let arguments = arguments.into();
                let args = BuildChildArgs { role: *role, supervisor: 7, mounted_at, size, arguments };
                let InternalCommand::BuildChild(parsed) =
                    InternalCli::try_parse_from(args.to_arguments()).unwrap().command
                else {
                    panic!("{args:?}");
                };
                assert_eq!(parsed, args);
            }
        }
    }
}
