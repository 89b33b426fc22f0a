#!/usr/bin/env bash
# Compares the packages in Cargo.lock with the RustSec advisory database. Exits 69 if the database cannot be fetched.
#
# Run scripts/install-tools.sh first: it installs cargo-deny.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
PATH=$root/target/tools/bin:$PATH

# A missing tool is a failure, not a database that cannot be fetched.
cargo deny --version
if ! cargo deny fetch db; then
    echo "advisories: could not fetch the RustSec database, so nothing was checked" >&2
    echo "  Run 'make advisories' on a machine that can clone it" >&2
    exit 69
fi
# 69 is taken: a failed check must not look like a database that cannot be fetched.
cargo deny --locked check --disable-fetch advisories || exit 1
