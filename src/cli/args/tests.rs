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
    ] {
        assert!(parse(bad).unwrap_err().use_stderr(), "{bad}");
    }
    for good in ["larder --help", "larder --version", "larder build --help", "larder help plan"] {
        assert!(!parse(good).unwrap_err().use_stderr(), "{good}");
    }
}

#[test]
fn rates() {
    assert_eq!(rate("20MiB/s"), Ok(20 << 20));
    assert_eq!(rate("1000"), Ok(1000));
    assert!(rate("/s").is_err() && rate("0").is_err());
}
