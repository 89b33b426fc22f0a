//! Tests that need root: volumes on disks, filled to the last block, killed, cut off and tampered with.
//!
//! On a machine without root, loop devices or a required program, a test is reported as ignored. It fails if
//! `LARDER_REQUIRE_ALL=1` is set, as `make test` does.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

#[macro_use]
extern crate larder_test_case;

#[path = "../it"]
#[allow(dead_code, unused_imports, reason = "the harness of the other tests, of which these use a part")]
mod it {
    pub(crate) mod harness;
}

use it::harness;

mod block;
mod crash;
mod daemon;
mod disk;
mod full;
mod host;
mod hostile;
mod leaks;
mod reuse;
mod served;
mod sign;
mod slow;

fn main() -> std::process::ExitCode {
    larder_testing::runner::main()
}
