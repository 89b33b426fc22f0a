//! Arguments for the format of a result.

use clap::{Args, ValueEnum};

use super::{OUTPUT, Output};

/// Format of the result of a command that prints one document.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(in crate::cli) struct OutputArgs {
    /// Format of the standard output
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT", help_heading = OUTPUT)]
    output: Output,
    /// Print JSON, the same as --output json
    #[arg(long, conflicts_with = "output", help_heading = OUTPUT)]
    json: bool,
}

impl OutputArgs {
    /// Returns the format that either flag names.
    pub(in crate::cli) fn format(self) -> Output {
        if self.json { Output::Json } else { self.output }
    }

    /// Returns `true` if the result is printed as JSON.
    pub(in crate::cli) fn is_json(self) -> bool {
        self.format() == Output::Json
    }
}

impl From<Output> for OutputArgs {
    fn from(output: Output) -> Self {
        OutputArgs { output, json: false }
    }
}

/// Format of the result of a command that prints a list.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(in crate::cli) struct ListOutputArgs {
    /// Format of the standard output
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT", global = true, help_heading = OUTPUT)]
    output: ListFormat,
    /// Print JSON, the same as --output json
    #[arg(long, global = true, conflicts_with = "output", help_heading = OUTPUT)]
    json: bool,
}

impl ListOutputArgs {
    /// Returns the format that either flag names.
    pub(in crate::cli) fn format(self) -> ListFormat {
        if self.json { ListFormat::Json } else { self.output }
    }
}

/// Format of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum ListFormat {
    /// A table, as wide as the terminal
    #[default]
    Text,
    /// A table with all columns and complete messages
    Wide,
    /// One JSON document
    Json,
    /// Names only, one per line
    Name,
}
