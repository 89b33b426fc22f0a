#!/usr/bin/env bash
# Writes DIRECTORY/larder.cdx.json: the packages of which `make dist` makes the program, as CycloneDX 1.5.
#
# usage: scripts/sbom.sh DIRECTORY
#
# Each package has its version, license, checksum and dependencies. The scope `required` means that the package is linked,
# or that a macro of it wrote linked code. The scope `excluded` means that only build scripts use it. The same sources give
# the same bytes in any directory; the time in the file is SOURCE_DATE_EPOCH, by default the time of the commit.
#
# Run scripts/install-tools.sh first: it installs cargo-cyclonedx.
set -euo pipefail
out=$(realpath --canonicalize-missing "${1:?usage: scripts/sbom.sh DIRECTORY}")
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$root"
PATH=$root/target/tools/bin:$PATH
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}

# The tool writes its file next to Cargo.toml, so it runs on a copy.
work=$(mktemp -d "${TMPDIR:-/tmp}/larder-sbom.XXXXXX")
trap 'rm -rf "$work"' EXIT
work=$(realpath "$work")
scripts/copy-sources.sh "$work/sources"

target=$(rustc -vV | sed -n 's/^host: //p')
cargo fetch --quiet --locked --target "$target"
CARGO_NET_OFFLINE=true cargo cyclonedx --quiet --manifest-path "$work/sources/Cargo.toml" --format json --features isal --spec-version 1.5 \
    --target "$target" --override-filename larder.cdx
if ! cmp --silent Cargo.lock "$work/sources/Cargo.lock"; then
    echo "sbom: Cargo.lock does not match Cargo.toml; run 'cargo metadata' to update it" >&2
    exit 65
fi

# Larder's own package is named by its directory: the copy becomes the name that scripts/release-env.sh gives to the sources.
sed --in-place "s|$work/sources|/larder|g" "$work/sources/larder.cdx.json"
mkdir -p "$out"
install --mode 0644 "$work/sources/larder.cdx.json" "$out/larder.cdx.json"
