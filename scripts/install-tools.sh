#!/usr/bin/env bash
# Builds the cargo plugins that `make lint` and `make sbom` need, from crates.io, into target/tools.
#
# Only this script pins their versions; `--locked` pins their dependencies too. It does nothing if the pinned
# versions are installed already. To update a tool, change its version here.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tools=$root/target/tools

wanted=(
    # Licenses, sources, bans and advisories of the packages in Cargo.lock.
    cargo-deny@0.20.2
    # Dependencies that no source file uses.
    cargo-machete@0.9.2
    # The software bill of materials.
    cargo-cyclonedx@0.5.9
)

missing=()
for tool in "${wanted[@]}"; do
    # Cargo keeps this list of installed programs. A query through cargo itself would need the network.
    grep --quiet --fixed-strings "\"${tool/@/ } (" "$tools/.crates.toml" 2>/dev/null && [[ -x $tools/bin/${tool%@*} ]] ||
        missing+=("$tool")
done
if ((${#missing[@]} == 0)); then
    exit
fi

# One build directory for all tools, because they share many packages. It is large and not needed afterwards.
build=$(mktemp -d "${TMPDIR:-/tmp}/larder-tools.XXXXXX")
trap 'rm -rf "$build"' EXIT

# Without optimization the build takes a third of the time, and a check of this lock file takes seconds either way.
echo "install-tools: building ${missing[*]}"
CARGO_PROFILE_DEV_DEBUG=0 CARGO_INCREMENTAL=0 "${CARGO:-cargo}" install --quiet --locked --debug --force \
    --root "$tools" --target-dir "$build" "${missing[@]}"
