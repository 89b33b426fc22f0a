#!/usr/bin/env bash
# Checks that every crate compiles with the oldest supported Rust, `rust-version` in Cargo.toml. Exit code 69: that toolchain
# is not installed and could not be downloaded.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
toolchain=$version.0
if [[ $(rustc --version) == "rustc $version."* ]]; then
    echo "msrv: the current compiler is Rust $version, so every other build checks it"
    exit
fi
if ! rustup run "$toolchain" rustc --version >/dev/null 2>&1 &&
    ! rustup toolchain install "$toolchain" --profile minimal; then
    echo "msrv: Rust $toolchain is not installed: nothing was checked" >&2
    exit 69
fi
# A directory of its own: programs of two compilers do not share artifacts.
CARGO_TARGET_DIR=target/msrv cargo "+$toolchain" check --workspace --locked --features isal
