#!/usr/bin/env bash
# Packs a program that is already built, with its units, man pages, completions, default configuration and monitoring files,
# into larder-VERSION-ARCHITECTURE-linux.tar.gz, and writes SHA256SUMS next to it. The same program and commit give the same
# bytes.
#
# usage: scripts/tarball.sh [PROGRAM [DIRECTORY]]
#
# PROGRAM is target/dist/larder if it is not given; `make tarball` builds that first, with the C library linked in.
# DIRECTORY is target/tarball.
set -euo pipefail

if (($# > 2)); then
    echo "usage: scripts/tarball.sh [PROGRAM [DIRECTORY]]" >&2
    exit 64
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
program=$(realpath --canonicalize-missing "${1:-$root/target/dist/larder}")
out=$(realpath --canonicalize-missing "${2:-$root/target/tarball}")
if [[ ! -x $program ]]; then
    echo "tarball: there is no program $program; run \`make tarball\`" >&2
    exit 66
fi
cd "$root"
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH

described=$("$program" version)
version=$(sed -n 's/^larder //p' <<<"$described")
architecture=$(sed -n 's/^target: \([^-]*\)-.*/\1/p' <<<"$described")
name=larder-$version-$architecture-linux
work=$(mktemp --directory)
trap 'rm -rf "$work"' EXIT
tree=$work/$name

install -D "$program" "$tree/bin/larder"
install -D config/larder.toml "$tree/etc/larder/larder.toml"
install -D --target-directory="$tree/lib/systemd/system" systemd/*
install -D --target-directory="$tree/monitoring" config/monitoring/*
install --target-directory="$tree" LICENSE README.md CHANGELOG.md SECURITY.md
mkdir --parents "$tree"/share/{man/man1,bash-completion/completions,zsh/site-functions,fish/vendor_completions.d}
"$program" man "$tree/share/man/man1"
"$program" completions bash >"$tree/share/bash-completion/completions/larder"
"$program" completions zsh >"$tree/share/zsh/site-functions/_larder"
"$program" completions fish >"$tree/share/fish/vendor_completions.d/larder.fish"
find "$tree" -type f ! -path "$tree/bin/larder" -exec chmod 644 {} +

mkdir --parents "$out"
# The format ustar has no times but the one that is given here. gzip writes no name and no time.
LC_ALL=C tar --create --file=- --directory="$work" --format=ustar --sort=name --mtime="@$SOURCE_DATE_EPOCH" \
    --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX "$name" | gzip --no-name >"$work/$name.tar.gz"
mv "$work/$name.tar.gz" "$out/"
(cd "$out" && sha256sum "$name.tar.gz" >SHA256SUMS)
echo "$out/$name.tar.gz"
