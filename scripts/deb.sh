#!/usr/bin/env bash
# Builds the Debian package target/deb/larder_VERSION_ARCHITECTURE.deb from a program that is already built.
#
# usage: scripts/deb.sh [PROGRAM]
#
# PROGRAM is target/dist/larder if it is not given; `make deb` builds that first. Needs debhelper.
set -euo pipefail
cd "$(dirname "$0")/.."

if (($# > 1)); then
    echo "usage: scripts/deb.sh [PROGRAM]" >&2
    exit 64
fi
program=${1:-target/dist/larder}
if [[ ! -x $program ]]; then
    echo "deb: there is no program $program; run \`make deb\`" >&2
    exit 66
fi
if ! command -v dh >/dev/null; then
    echo "deb: debhelper is missing; run \`apt-get install debhelper\`" >&2
    exit 69
fi

# The working tree is not changed: debhelper writes its files next to debian/rules, so it gets a copy.
tree=$(mktemp --directory)
trap 'rm -rf "$tree"' EXIT
tar --create --file=- debian config systemd README.md SECURITY.md CHANGELOG.md | tar --extract --file=- --directory="$tree"
install -D "$program" "$tree/larder-program"
mkdir --parents target/deb
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH
make --silent --directory="$tree" --file=debian/rules binary PROGRAM=./larder-program
install --mode=644 "$tree"/target/deb/*.deb target/deb/
ls target/deb/*.deb
