#!/usr/bin/env bash
# Runs containerd's own suite for snapshotters against `larder snapshotter`. Needs root: it mounts in a
# private namespace.
#
# `make test` has equivalent tests (tests/it/snapshotter/suite.rs). The suite itself needs Go and Debian's
# source of containerd. These packages take 860 MB, so they are not required on every machine:
#
#   apt-get install --no-install-recommends golang-go golang-github-containerd-containerd-dev
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
library=/usr/share/gocode
if ! command -v go >/dev/null || [[ ! -d $library/src/github.com/containerd/containerd/snapshots/testsuite ]]; then
    echo "containerd-suite: install golang-go and golang-github-containerd-containerd-dev first" >&2
    exit 1
fi
cargo build --quiet --locked --package larder --manifest-path "$root/Cargo.toml"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/src/suite"
cp "$root/tests/containerd-suite/suite_test.go" "$work/src/suite/"
cd "$work/src/suite"
GOPATH=$work:$library GO111MODULE=off GOCACHE=$root/target/go go test -c -o "$work/suite" .
LARDER=$root/target/debug/larder unshare --mount --propagation private "$work/suite" -test.v -test.root "$@"
