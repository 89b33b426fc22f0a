#!/usr/bin/env bash
# Writes crates/containerd-api/src/api/*.rs with tonic and prost, from the protos that containerd publishes. The protos come in
# the crate containerd-client, which the lock file of scripts/containerd-api/ pins. With --check, the script writes nothing,
# and a difference is an error.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
manifest=$root/scripts/containerd-api/Cargo.toml
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT

cargo fetch --quiet --locked --manifest-path "$manifest"
crate=$(cargo metadata --locked --format-version 1 --manifest-path "$manifest" |
    python3 -c 'import json, os, sys
print(*(os.path.dirname(p["manifest_path"]) for p in json.load(sys.stdin)["packages"] if p["name"] == "containerd-client"))')
cargo run --quiet --locked --manifest-path "$manifest" --target-dir "$root/target/containerd-api" -- "$crate/vendor" "$made"
if [[ ${1-} == --check ]]; then
    diff --recursive --unified "$root/crates/containerd-api/src/api" "$made"
else
    mkdir -p "$root/crates/containerd-api/src/api"
    cp "$made"/*.rs "$root/crates/containerd-api/src/api/"
fi
