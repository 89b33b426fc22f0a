#!/usr/bin/env bash
# Checks that the release build does not depend on its directory. Builds it in this directory and again in
# another one, with another cargo home, and compares the two programs byte by byte.
#
# usage: scripts/reproducible.sh [PROGRAM]
#
# With PROGRAM, for example a published release, the script makes only the second build and compares the two.
# It builds the working tree, without ignored files. Needs the network for crates that are not downloaded yet,
# and 3 GB of disk.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$root"

if (($# > 1)); then
    echo "usage: scripts/reproducible.sh [PROGRAM]" >&2
    exit 64
fi
program=${1:-}
if [[ -z $program ]]; then
    make dist
    program=${CARGO_TARGET_DIR:-target}/dist/larder
fi
program=$(realpath "$program")

# The depth and the length of the path differ from those of this directory.
work=$(mktemp -d "${TMPDIR:-/var/tmp}/larder-reproducible.XXXXXX")
trap 'rm -rf "$work"' EXIT
sources=$work/second/copy/of/the/sources
home=$work/cargo-home
mkdir -p "$home/registry"
scripts/copy-sources.sh "$sources"

# Downloads and settings are copied. The sources are unpacked again, at another path. Credentials are not
# copied.
first=${CARGO_HOME:-$HOME/.cargo}
for part in registry/cache registry/index config.toml; do
    [[ ! -e $first/$part ]] || cp --recursive "$first/$part" "$home/$part"
done

# The copy is not a git repository.
export LARDER_COMMIT=${LARDER_COMMIT-$(git rev-parse --short=12 HEAD 2>/dev/null || true)}
unset CARGO_TARGET_DIR
(
    export CARGO_HOME=$home SOURCE_DATE_EPOCH=0
    # Programs of rustup are found by PATH; it needs its own home, not the one of cargo.
    make --directory "$sources" dist
)
second=$sources/target/dist/larder

failed=
for path in "$root" "$work" "$first" "$home"; do
    if grep --quiet --text --fixed-strings "$(realpath "$path")" "$program" "$second"; then
        echo "reproducible: a program contains the path $path" >&2
        failed=1
    fi
done
sha256sum "$program" "$second"
if ! cmp "$program" "$second"; then
    cp "$second" "$root/target/larder-second"
    echo "reproducible: the programs differ; the second one is kept as target/larder-second" >&2
    echo "  Compare the versions of rustc, cc, nasm and the linker, then run diffoscope on both" >&2
    failed=1
fi
[[ -z $failed ]] || exit 1
echo "reproducible: both programs are the same"
