//! Passes the commit and the compiler to `src/version.rs`.
//!
//! The commit comes from `LARDER_COMMIT`, which the Makefile and packages set, or from git. Sources outside a
//! git repository have no commit.

use std::env;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=LARDER_COMMIT");
    let commit =
        env::var("LARDER_COMMIT").ok().or_else(|| output("git", &["rev-parse", "--short=12", "HEAD"]));
    let compiler = env::var("RUSTC").ok().and_then(|rustc| output(&rustc, &["--version"]));
    let target = env::var("TARGET").unwrap_or_default();
    for (name, value) in [
        ("COMMIT", commit.unwrap_or_default()),
        ("COMPILER", compiler.unwrap_or_default()),
        ("TARGET", target),
    ] {
        println!("cargo::rustc-env=LARDER_BUILD_{name}={value}");
    }
}

/// Returns the first line that a command prints, or `None` if the command fails.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output =
        Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.lines().next()?.to_owned())
}
