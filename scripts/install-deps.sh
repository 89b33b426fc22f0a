#!/usr/bin/env bash
# Installs what building, testing and the demo need from the machine (Debian 12 and newer; root).
#
# This is the one place that names the machine's packages. It may be run again at any time: it asks nothing, and when
# nothing is missing it takes a moment and touches no network. Rust itself comes from rustup, not from here.
set -euo pipefail

packages=(
    # Building: ring and zstd compile C code.
    gcc libc6-dev make
    # Building: ISA-L, which inflates gzip on x86-64 (feature `isal`).
    nasm autoconf automake libtool
    # Building: cargo fetches crates over TLS.
    ca-certificates
    # Tests, demo: a real registry, and bcrypt passwords and signed tokens for its two kinds of authentication.
    docker-registry apache2-utils openssl
    # Tests, demo: runs containers from a sealed volume. crun is named because podman only recommends a runtime.
    podman crun
    # Tests: builds on images of a sealed volume.
    buildah
    # Tests: copies images out of a sealed volume, which proves tar-split.
    skopeo
    # Tests: a second opinion on what applying layers means. Needs runc.
    containerd runc
    # Tests: layers as bsdtar writes them, and archives compressed by what Larder does not read.
    libarchive-tools xz-utils bzip2
    # Tests, demo: the base layer of images made from the machine's own files.
    busybox-static python3-minimal
    # Larder itself: makes, checks and resizes disks (volumes of kind disk and block).
    e2fsprogs
    # Tests, benchmarks: fsck.erofs, a second opinion on EROFS images, and mkfs.erofs to be measured with.
    erofs-utils
    # Tests: veritysetup, a second opinion on hash trees.
    cryptsetup-bin
    # Tests: small loop-mounted file systems, private mount namespaces.
    xfsprogs mount util-linux
    # Tests: the systemd unit, and the daemon under what the unit allows. The programs alone; nothing is booted.
    systemd strace
    # Tests: the vendor's SDK and the fuzzer of the API come from tests/requirements.txt into an environment of their own.
    python3-venv
    # Tests: the API without an SDK.
    curl
    # make interop: documents for crictl, networks of pods.
    jq containernetworking-plugins
    # Benchmarks: the unpacker that skopeo is measured with, and peak memory.
    umoci time
    # Benchmarks: counts instructions.
    valgrind
)
# Tests: the commands of docs/kubernetes.md, by whatever kubectl is there; Debian 12 has 1.20.
command -v kubectl >/dev/null || packages+=(kubernetes-client)

# Packages of Debian: asks for root only when one is missing.
install_packages() {
    local missing=() package status
    for package in "${packages[@]}"; do
        status=$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null || true)
        [[ $status == installed ]] || missing+=("$package")
    done
    if ((${#missing[@]} == 0)); then
        return
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
}

# Packages of Python, pinned by hash. The copy of the list beside them is written last: without it, or with another, the
# environment is half made or out of date, and is made anew.
install_python() {
    local root python wanted
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    python=${LARDER_PYTHON_ENV:-$root/target/python}
    wanted=$root/tests/requirements.txt
    if cmp --silent "$wanted" "$python/requirements.txt" && "$python/bin/python" -c '' 2>/dev/null; then
        return
    fi

    # --clear empties the directory, so it has to be one of ours.
    if [[ -e $python && ! -e $python/pyvenv.cfg && -n $(ls -A "$python") ]]; then
        echo "install-deps: $python is not a Python environment; LARDER_PYTHON_ENV wants a new or empty directory" >&2
        exit 1
    fi
    echo "install-deps: making the Python environment $python"
    python3 -m venv --clear "$python"
    "$python/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: \
        --requirement "$wanted"
    cp "$wanted" "$python/requirements.txt"
}

install_packages
install_python
