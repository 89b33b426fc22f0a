//! Integration tests: the real `larder` with a real registry, and real consumers of the sealed volume.
//!
//! Each test that needs a program or a privilege checks [`harness::Need`] first. If one is missing, the test
//! is reported as ignored. It fails if `LARDER_REQUIRE_ALL=1` is set, as `make test` does.

#![expect(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout, reason = "tests")]

#[macro_use]
extern crate larder_test_case;

mod accepted;
mod access;
mod attach;
mod bench;
mod browser;
mod build;
mod cap;
mod cli;
mod client;
mod confine;
mod consumers;
mod daemon;
mod erofs;
mod events;
mod export;
mod faults;
mod forgiving;
mod front_door;
mod harness;
mod image;
mod images;
mod imports;
mod kubernetes;
mod limits;
mod matching;
mod memory;
mod modes;
mod node_store;
mod notify;
mod odd_configs;
mod operate;
mod oracle;
mod outputs;
mod package;
mod page;
mod pod;
mod prefetch;
mod privileges;
mod prometheus;
mod resume;
mod reuse;
mod runner;
mod sandbox;
mod sdk;
mod secrets;
mod serve;
mod sign;
mod snapshotter;
mod status;
mod store;
mod supply;
mod tamper;
mod tenants;
mod tls;
mod traces;
mod ui;
mod unit;
mod unreachable;

mod write_behind;

fn main() -> std::process::ExitCode {
    larder_testing::runner::main()
}
