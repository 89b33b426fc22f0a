#!/usr/bin/env bash
# Runs a command with an environment in which cargo builds the same program in any directory.
#
# usage: scripts/release-env.sh cargo build --release --locked
#
# A program contains paths: in messages of panics, in debug information, and where C code uses __FILE__. This script maps
# the directories of the sources, of cargo, of the build and of Rust's own library to fixed names. The compilers, the
# linker and the assembler must be the same versions on both machines; `rustc -vV`, `cc --version` and `nasm -v` print them.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

if (($# == 0)); then
    echo "usage: scripts/release-env.sh COMMAND [ARGUMENT...]" >&2
    exit 64
fi

# Runs in the root of the sources, because cargo reads configuration from the working directory upwards.
cd "$root"
cargo_home=$(cd "${CARGO_HOME:-$HOME/.cargo}" && pwd -P)
target=$(realpath --canonicalize-missing "${CARGO_TARGET_DIR:-target}")
sysroot=$(rustc --print sysroot)
compiler=$(rustc -vV | sed -n 's/^commit-hash: //p')
host=$(rustc -vV | sed -n 's/^host: //p')

# The sources of crates must be there before the loop below can list their directories.
cargo fetch --quiet --locked --target "$host"

declare -A names=(
    ["$root"]=/larder
    ["$target"]=/larder/target
    ["$cargo_home"]=/cargo
    ["$sysroot/lib/rustlib/src/rust"]=/rustc/$compiler
)
shopt -s nullglob
for registry in "$cargo_home"/registry/src/*/; do
    names["${registry%/}"]=/cargo/registry
done
for path in "${!names[@]}"; do
    if [[ $path == *[[:space:]=]* ]]; then
        echo "release-env: the path '$path' contains white space or '=', which the flags of a C compiler cannot contain" >&2
        echo "  Build in another directory" >&2
        exit 64
    fi
done

# Of the prefixes that match a path, the compilers take the one that was given last: a longer path comes after a shorter one.
rust=() c=()
while read -r _ path; do
    rust+=("--remap-path-prefix=$path=${names[$path]}")
    c+=("-ffile-prefix-map=$path=${names[$path]}")
done < <(for path in "${!names[@]}"; do echo "${#path} $path"; done | sort -n)

# A user's own flags would change the program, so they are replaced instead of extended.
unset RUSTFLAGS LDFLAGS CPPFLAGS "${!CARGO_PROFILE_@}"
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f'; echo "${rust[*]}")
export CARGO_ENCODED_RUSTFLAGS
export CFLAGS="${c[*]}" CXXFLAGS="${c[*]}"
export CARGO_INCREMENTAL=0 LC_ALL=C TZ=UTC
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH
# The commit that `larder version` prints. An empty value means none.
export LARDER_COMMIT=${LARDER_COMMIT-$(git rev-parse --short=12 HEAD 2>/dev/null || true)}

exec "$@"
