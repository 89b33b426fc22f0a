#!/usr/bin/env bash
# Installs the packages for building, testing and the demo (Debian 12 and newer; needs root).
#
# Only this script lists the machine's packages. It is safe to run again: it has no prompts, and if nothing is
# missing it takes a moment and does not use the network. Rust itself comes from rustup.
set -euo pipefail

packages=(
    # Building: ring and zstd compile C code.
    gcc libc6-dev make
    # make fuzz: libFuzzer is C++.
    g++
    # Building: ISA-L, which decompresses gzip on x86-64 (feature `isal`).
    nasm autoconf automake libtool
    # Building: cargo fetches crates over TLS.
    ca-certificates
    # Tests, demo: a real registry, and bcrypt passwords and signed tokens for its two kinds of authentication.
    docker-registry apache2-utils openssl
    # Tests, demo: run containers from a sealed volume. crun is named because podman only recommends a
    # runtime.
    podman crun
    # Tests: builds from images of a sealed volume.
    buildah
    # Tests: copies images out of a sealed volume, which verifies tar-split.
    skopeo
    # Tests: a second opinion on applying layers. Needs runc.
    containerd runc
    # Tests: layers of bsdtar, and archives with compressions that Larder cannot read.
    libarchive-tools xz-utils bzip2
    # Tests, demo: the base layer of images made from the machine's own files.
    busybox-static python3-minimal
    # Larder itself: creates, checks and resizes disks (volumes of kind disk and block).
    e2fsprogs
    # Tests, benchmarks: fsck.erofs, a second opinion on EROFS images, and mkfs.erofs as a comparison.
    erofs-utils
    # Tests: veritysetup, a second opinion on hash trees.
    cryptsetup-bin
    # Tests: small loop-mounted file systems, private mount namespaces.
    xfsprogs mount util-linux
    # Tests: the systemd unit, and the daemon under its restrictions. Only the programs are used; systemd is
    # not started.
    systemd strace
    # Tests: the vendor's SDK, the fuzzer of the API and the driver of the browser are installed from
    # tests/requirements.txt into a Python environment.
    python3-venv
    # Tests: the pages in a browser. The font gives pages the same size on every machine.
    chromium fonts-dejavu-core
    # Tests: the API without an SDK.
    curl
    # Tests: scrapes the metrics, and checks the alert rules.
    prometheus
    # Tests: the Debian package.
    debhelper lintian debootstrap
    # make lint.
    shellcheck
    # make interop: documents for crictl, networks of pods.
    jq containernetworking-plugins
    # Tests: a network for the commands of the pages in docs/. These also use jq and umoci.
    iproute2
    # Benchmarks: the unpacker that is measured together with skopeo, and peak memory.
    umoci time
    # Benchmarks: counts instructions.
    valgrind
)
# Tests: the commands of docs/kubernetes.md, with the installed kubectl. Debian 12 has 1.20.
command -v kubectl >/dev/null || packages+=(kubernetes-client)

# Debian packages. Needs root only if one is missing.
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
        echo "install-deps: run this script as root, or install these packages yourself" >&2
        exit 1
    fi

    # Only the programs are needed. Some packages would start services on a fresh machine.
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

# Python packages, pinned by hash. The copy of the list is written last. If it is missing or differs, the
# environment is incomplete or out of date, and is created again.
install_python() {
    local root python wanted
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    python=${LARDER_PYTHON_ENV:-$root/target/python}
    wanted=$root/tests/requirements.txt
    if cmp --silent "$wanted" "$python/requirements.txt" && "$python/bin/python" -c '' 2>/dev/null; then
        return
    fi

    # --clear empties the directory, so it must be a Python environment.
    if [[ -e $python && ! -e $python/pyvenv.cfg && -n $(ls -A "$python") ]]; then
        echo "install-deps: $python is not a Python environment; set LARDER_PYTHON_ENV to a new or empty directory" >&2
        exit 1
    fi
    echo "install-deps: creating the Python environment $python"
    python3 -m venv --clear "$python"
    "$python/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: \
        --requirement "$wanted"
    cp "$wanted" "$python/requirements.txt"
}

install_packages
install_python
