use std::collections::BTreeSet;

use clap::CommandFactory as _;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_definition_holds() {
    Cli::command().debug_assert();
}

#[test]
fn clap_errors_go_to_stderr_and_help_does_not() {
    for bad in [
        "larder",
        "larder bake",
        "larder build --size x a",
        "larder build --size -1 a",
        "larder build a@sha256:zz",
        "larder build --platform linux a",
        "larder build --pull-secret x a",
        "larder build --concurrency 0 a",
        "larder build --limit-rate 0/s a",
        "larder build --deadline tomorrow a",
        "larder build --sizing maybe a",
        "larder build --output yaml a",
        "larder build --log-level larder=loud a",
        "larder bench",
        "larder bench decode",
        "larder bench apply a",
        "larder bench build a --dir d --concurrency 0",
        "larder verify",
        "larder verify a --trust",
        "larder key",
        "larder key generate",
        "larder build --sign-key",
        "larder inspect a b",
        "larder prefetch",
        "larder prefetch a --image @",
        "larder match",
        "larder match a --platform x",
        "larder config",
        "larder cache",
        "larder cache create web",
        "larder cache create Web nginx",
        "larder cache import web",
        "larder cache wait a --timeout 3",
        "larder cache ls --host ftp://x",
        "larder build --kept fill a",
        "larder build --supervisor 1 a",
        "larder verify --for-use a",
        "larder internal build-child fill --supervisor 1 -- build a",
    ] {
        assert!(parse(bad).unwrap_err().use_stderr(), "{bad}");
    }
    for good in ["larder --help", "larder --version", "larder build --help", "larder help plan"] {
        assert!(!parse(good).unwrap_err().use_stderr(), "{good}");
    }
}

#[test]
fn verbose_sets_the_log_level() {
    for (line, level) in [
        ("larder verify v", None),
        ("larder -v verify v", Some("debug")),
        ("larder verify v -vv", Some("trace")),
        ("larder verify v -vvv", Some("trace")),
        ("larder verify v --log-level warn", Some("warn")),
    ] {
        let given = parse(line).unwrap().global.level().map(|level| level.to_string());
        assert_eq!(given.as_deref(), level, "{line}");
    }
    assert!(parse("larder verify v -v --log-level warn").is_err());
}

#[test]
fn the_public_commands_have_no_hidden_flags() {
    fn check(command: &clap::Command) {
        let hidden: Vec<_> = command.get_arguments().filter(|arg| arg.is_hide_set()).collect();
        assert!(hidden.is_empty(), "{}: {hidden:?}", command.get_name());
        command.get_subcommands().for_each(check);
    }
    let command = Cli::command();
    check(&command);
    assert!(command.get_subcommands().all(|command| command.get_name() != internal::NAME));
}

#[test]
fn a_flag_of_build_and_import_has_one_declaration() {
    let command = Cli::command();
    let flags = |name: &str| -> BTreeSet<String> {
        let command = command.find_subcommand(name).unwrap();
        command.get_arguments().filter_map(|arg| arg.get_long().map(str::to_owned)).collect()
    };
    let mut shared = BuildOptions::augment_args(clap::Command::new("shared"));
    shared.build();
    let shared: BTreeSet<String> =
        shared.get_arguments().filter_map(|arg| arg.get_long().map(str::to_owned)).collect();
    let both: BTreeSet<String> = flags("build").intersection(&flags("import")).cloned().collect();
    let twice: Vec<&String> = both.difference(&shared).collect();
    // An import requires a volume; a build can be a plan without one.
    assert_eq!(twice, ["volume"]);
    assert_eq!(flags("build"), flags("plan"));
}
