//! The page of `larder --help`: the commands, grouped by purpose.

use std::fmt::Write as _;

use clap::{Command, CommandFactory as _};

use super::args::Cli;
use crate::config::reference;

/// The groups of commands, in the order of the page.
const GROUPS: [(&str, &[&str]); 5] = [
    (
        "Build",
        &["build", "plan", "import", "export", "verify", "inspect", "mount", "umount", "prefetch", "bench"],
    ),
    ("Daemon", &["serve", "ls", "cache"]),
    ("Node", &["match", "attach", "detach", "preload", "snapshotter", "node"]),
    ("Keys", &["key"]),
    ("Other", &["config", "explain", "completions", "version"]),
];

/// Maximum width of help texts, columns. A narrower terminal limits them further.
const MAX_WIDTH: usize = 100;

/// Returns the description of the command line.
pub(super) fn command() -> Command {
    let command = with_defaults(Cli::command().max_term_width(MAX_WIDTH));
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{}Options:\n{{options}}{{after-help}}",
        commands(&command)
    );
    command.help_template(template)
}

/// Replaces `{section.key}` in the help of flags by the default of the key, and its name.
fn with_defaults(command: Command) -> Command {
    let command = command.mut_args(|arg| {
        let short = arg.get_help().and_then(|help| filled(&help.to_string()));
        let long = arg.get_long_help().and_then(|help| filled(&help.to_string()));
        let arg = match short {
            Some(help) => arg.help(help),
            None => arg,
        };
        match long {
            Some(help) => arg.long_help(help),
            None => arg,
        }
    });
    command.mut_subcommands(with_defaults)
}

/// Fills in a help text; `None` if it names no key.
fn filled(help: &str) -> Option<String> {
    let (before, rest) = help.split_once('{')?;
    let (key, after) = rest.split_once('}')?;
    let default = reference::default_of(key)?.trim_matches('"');
    Some(format!("{before}{default} ({key}){after}"))
}

/// Returns the list of commands.
fn commands(command: &Command) -> String {
    let mut text = String::new();
    for (group, names) in GROUPS {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{group} commands:");
        for name in names {
            let about = command.find_subcommand(name).and_then(Command::get_about);
            let about = wrapped(&about.map(ToString::to_string).unwrap_or_default());
            let _ = writeln!(text, "  {name:<12} {about}");
        }
        text.push('\n');
    }
    text
}

/// Breaks a description into lines that fit next to the names on a terminal of 80 columns.
fn wrapped(text: &str) -> String {
    const WIDTH: usize = 80 - 15;
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().filter(|line| line.is_empty() || line.len() + 1 + word.len() <= WIDTH);
        match line {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) => {
                line.push(' ');
                line.push_str(word);
            }
            None => lines.push(word.to_owned()),
        }
    }
    lines.join("\n               ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_public_command_is_in_one_group() {
        let command = Cli::command();
        let public = command.get_subcommands().filter(|command| !command.is_hide_set());
        let mut public: Vec<_> = public.map(|command| command.get_name().to_owned()).collect();
        let mut grouped: Vec<_> =
            GROUPS.iter().flat_map(|(_, names)| *names).map(|name| (*name).to_owned()).collect();
        public.sort_unstable();
        grouped.sort_unstable();
        assert_eq!(grouped, public);
    }

    /// No line of a help text is wider than a terminal of 80 columns, so none is wrapped in the middle of an
    /// example.
    #[test]
    fn help_fits_in_80_columns() {
        fn check(command: &Command, path: &str) {
            let mut command = command.clone().term_width(80);
            for text in [command.render_help(), command.render_long_help()] {
                for line in text.to_string().lines() {
                    assert!(line.chars().count() <= 80, "{path}: {line}");
                }
            }
            // Wrapping must not break an example into two lines.
            let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            for line in examples.lines() {
                assert!(line.chars().count() <= 80, "{path}: {line}");
            }
            for child in command.get_subcommands().filter(|child| !child.is_hide_set()) {
                check(child, &format!("{path} {}", child.get_name()));
            }
        }
        check(&command(), "larder");
    }

    #[test]
    fn defaults_of_the_configuration_are_shown() {
        fn check(command: &Command, found: &mut String) {
            let mut command = command.clone().term_width(1000);
            found.push_str(&command.render_long_help().to_string());
            command.get_subcommands().for_each(|child| check(child, found));
        }
        let mut found = String::new();
        check(&command(), &mut found);
        let concurrency = crate::config::Config::default().build.concurrency;
        assert!(found.contains(&format!("[default: {concurrency} (build.concurrency)]")), "{found}");
        assert!(found.contains("[default: overlay (build.layer_format)]"), "{found}");
        for unclear in ["{", "the configuration's", "of the configuration, info"] {
            let at = found.lines().find(|line| line.contains(unclear));
            assert_eq!(at, None);
        }
    }

    /// Flags of commands with many flags have a heading.
    #[test]
    fn flags_are_grouped() {
        for (name, headings) in [
            ("build", &["Source", "Volume", "Credentials", "Transfer", "Output", "Security"][..]),
            ("import", &["Source", "Volume", "Transfer", "Output", "Security"]),
            ("attach", &["Source", "Runtime", "Credentials", "Security"]),
        ] {
            let command = command();
            let command = command.find_subcommand(name).unwrap();
            let ungrouped: Vec<_> = command
                .get_opts()
                .filter(|option| option.get_help_heading().is_none())
                .map(|option| option.get_id().to_string())
                .collect();
            assert!(ungrouped.is_empty(), "{name}: {ungrouped:?}");
            for heading in headings {
                assert!(
                    command.get_opts().any(|option| option.get_help_heading() == Some(heading)),
                    "{name} {heading}"
                );
            }
        }
    }
}
