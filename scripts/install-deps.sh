#!/usr/bin/env bash
# Installs what building, testing and the demo need from the machine (Debian 12 and newer; root).
#
# This is the one place that names the machine's packages. It may be run again at any time: it asks nothing, and when
# nothing is missing it takes a moment and touches no network. Rust itself comes from rustup, not from here.
set -euo pipefail

packages=(
    # Building: ring and zstd compile C code.
    gcc libc6-dev make
    # Building: cargo fetches crates over TLS.
    ca-certificates
    # Tests, demo: a real registry, and bcrypt passwords and signed tokens for its two kinds of authentication.
    docker-registry apache2-utils openssl
    # Tests, demo: runs containers from a sealed volume. crun is named because podman only recommends a runtime.
    podman crun
    # Tests: copies images out of a sealed volume, which proves tar-split.
    skopeo
    # Tests: a second opinion on what applying layers means. Needs runc.
    containerd runc
    # Tests, demo: the base layer of images made from the machine's own files.
    busybox-static python3-minimal
    # Tests: small loop-mounted file systems, private mount namespaces.
    e2fsprogs xfsprogs mount util-linux
    # Benchmarks: the unpacker that skopeo is measured with, and peak memory.
    umoci time
)

missing=()
for package in "${packages[@]}"; do
    status=$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null || true)
    [[ $status == installed ]] || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
    exit 0
fi

echo "install-deps: missing: ${missing[*]}"
if ((EUID != 0)); then
    echo "install-deps: run this script as root, or install those packages by hand" >&2
    exit 1
fi

# The programs are wanted, not the services that some of these packages would start on a fresh machine.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet
apt-get install --yes --quiet --no-install-recommends "${missing[@]}"
