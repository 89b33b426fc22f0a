# shellcheck shell=bash disable=SC2034,SC2154  # Variables of the other parts.
# The runtimes, the features to test with each of them, and the programs of a node.

# Names of columns: NAME-path is the program on PATH, NAME-named is the program of an environment variable.
runtimes=(containerd-path containerd-named erofs-named podman-path podman-named crio-path crio-named)

# Prints the program of a column, or nothing.
program() {
    case $1 in
        containerd-path) command -v containerd ;;
        containerd-named | erofs-named) echo "${LARDER_TEST_CONTAINERD:-}" ;;
        podman-path) command -v podman ;;
        podman-named) echo "${LARDER_TEST_PODMAN:-}" ;;
        crio-path) command -v crio ;;
        crio-named) echo "${LARDER_TEST_CRIO:-}" ;;
    esac || true
}

crictl() { echo "${LARDER_TEST_CRICTL:-$(command -v crictl || true)}"; }

# Prints the reason why a column cannot be run. Fails if it can.
missing() {
    local program
    program=$(program "$1")
    if [[ ! -x $program ]]; then
        case $1 in
            *-path) echo "${1%-*} is not installed" ;;
            erofs-*) echo "LARDER_TEST_CONTAINERD names no program" ;;
            *) echo "LARDER_TEST_$(tr '[:lower:]' '[:upper:]' <<<"${1%-*}") names no program" ;;
        esac
    elif [[ $1 != podman-* && ! -x $(crictl) ]]; then
        echo "crictl is not installed, and LARDER_TEST_CRICTL names no program"
    else
        return 1
    fi
}

# Prints the title of a column in the table.
title() {
    local program version
    program=$(program "$1")
    if [[ ! -x $program ]]; then
        echo "${1%-*}"
        return
    fi
    # Output such as "containerd REPOSITORY v2.4.0 REVISION", "podman version 6.0.0", or "crio version 1.37.0"
    # and more lines.
    version=$("$program" --version 2>/dev/null | head -n 1 | grep --only-matching --extended-regexp '[0-9]+\.[0-9]+\.[0-9][^ ]*' | head -n 1)
    case $1 in
        erofs-*) echo "containerd $version, own EROFS snapshotter" ;;
        *) echo "${1%-*} $version" ;;
    esac
}

# Prints the name of the file with the features of a column.
file_of() {
    case $1 in
        containerd-*) echo containerd ;;
        *) echo "${1%-*}" ;;
    esac
}

# Prints RUNTIME/FEATURE for each cell, in the order of the rows of the table.
cells() {
    local runtime
    for runtime in "${runtimes[@]}"; do
        # A feature is a function whose name begins with "feature_".
        sed -n "s,^feature_\([A-Za-z0-9_]*\)() .*,$runtime/\1,p" "$here/interop/$(file_of "$runtime").sh"
    done
}

# Creates the layer of a node that contains the programs of a column, and hides every other runtime.
make_programs() {
    local bin=$memory/programs/$1/usr/bin sbin=$memory/programs/$1/usr/sbin name source
    [[ ! -d $bin ]] || return 0
    mkdir -p "$bin" "$sbin"
    # A character device 0:0 is a whiteout of overlayfs.
    hide() { rm -f "$1" && mknod "$1" c 0 0; }
    put() {
        hide "$sbin/$2"
        rm -f "$bin/$2"
        cp "$1" "$bin/$2"
    }
    for name in containerd podman buildah crio docker; do
        hide "$bin/$name"
        hide "$sbin/$name"
    done
    local program
    program=$(program "$1")
    [[ -x $program ]] || return 0
    put "$program" "$(basename "$program")"
    put "$LARDER" larder
    [[ ! -x $(crictl) ]] || put "$(crictl)" crictl
    if [[ $1 == *-path ]]; then
        # A machine with podman on PATH often has buildah, which reads the same files.
        [[ $1 != podman-path ]] || ! command -v buildah >/dev/null || put "$(command -v buildah)" buildah
        return
    fi
    # For a node with programs of different versions.
    [[ $1 != podman-named ]] || ! command -v buildah >/dev/null || cp "$(command -v buildah)" "$memory/buildah"
    for name in ctr containerd-shim-runc-v2 pinns; do
        [[ ! -x ${program%/*}/$name ]] || put "${program%/*}/$name" "$name"
    done
    for name in RUNC CRUN CONMON MKFS_EROFS; do
        source=LARDER_TEST_$name
        name=$(tr '[:upper:]_' '[:lower:].' <<<"$name")
        [[ -z ${!source:-} ]] || put "${!source}" "$name"
    done
    # podman looks for this program only in its own directories, and does not start without it.
    if [[ -n ${LARDER_TEST_NETAVARK:-} ]]; then
        mkdir -p "$memory/programs/$1/usr/libexec/podman"
        cp "$LARDER_TEST_NETAVARK" "$memory/programs/$1/usr/libexec/podman/netavark"
    fi
}
