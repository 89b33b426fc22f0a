#!/usr/bin/env bash
# Checks for the programs that build ISA-L (feature `isal`, x86-64 only) and names the missing ones. Cargo
# itself would fail only after minutes.
set -euo pipefail

[[ $(uname -m) == x86_64 ]] || exit 0
missing=()
for program in nasm autoreconf automake libtoolize make cc; do
    command -v "$program" >/dev/null || missing+=("$program")
done
if ((${#missing[@]})); then
    echo "check-isal: missing programs: ${missing[*]}" >&2
    echo "  Install the packages nasm, autoconf, automake, libtool, make and gcc (make deps does this on Debian)," >&2
    echo "  or build without ISA-L: cargo build --release" >&2
    exit 69
fi
