#!/usr/bin/env bash
# Tests the operations of nodes on image caches (attach, start, upgrade, detach, ...) with every available
# container runtime, and prints a table of the results as Markdown. See --help.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
parts=$here/interop

usage() {
    cat <<'TEXT'
Usage: interop.sh [--only PATTERN] [--keep DIR]

Tests the features of scripts/interop/*.sh with each container runtime. Each feature runs on a simulated node: a
copy-on-write copy of this machine in its own mount, process, network and cgroup namespaces, with a local registry. Prints
a table as Markdown on standard output. Needs root, but no network.

  --only PATTERN   run only the cells whose name matches this regular expression; a name is RUNTIME/FEATURE
  --list           print the names of the cells, and run none
  --keep DIR       keep the log of each cell in DIR

Uses containerd, podman and crio from PATH, if they are installed. Environment variables name further programs to test:

  LARDER                  larder; default: target/release/larder
  LARDER_TEST_CONTAINERD  containerd, with ctr and containerd-shim-runc-v2 in the same directory
  LARDER_TEST_PODMAN      podman
  LARDER_TEST_CRIO        crio, with pinns in the same directory
  LARDER_TEST_CRICTL      crictl; without it all cells that need CRI are skipped
  LARDER_TEST_RUNC        runc for the runtimes above; default: the one on PATH
  LARDER_TEST_CRUN        crun for the runtimes above; default: the one on PATH
  LARDER_TEST_CONMON      conmon for the runtimes above; default: the one on PATH
  LARDER_TEST_NETAVARK    netavark for the podman above, which does not start without it; default: the installed one
  LARDER_TEST_MKFS_EROFS  mkfs.erofs for the containerd above; default: the one on PATH

Exit codes: 0 if no cell fails, 1 if one fails, 77 if nothing can be run.
TEXT
}

die() {
    echo "interop: $*" >&2
    exit 77
}

only=. keep='' list=''
# This script runs itself for each cell, in private namespaces.
if [[ ${1:-} == --cell ]]; then
    shift
    # shellcheck source-path=SCRIPTDIR source=interop/cell.sh
    source "$parts/cell.sh"
    run_cell "$@"
    exit
fi
inside=''
while (($#)); do
    case $1 in
        --only) only=${2:?--only needs a pattern} && shift ;;
        --keep) keep=$(realpath "${2:?--keep needs a directory}") && shift ;;
        --list) list=1 ;;
        --inside) inside=1 ;;
        --help | -h) usage && exit ;;
        *) die "unknown argument $1, see --help" ;;
    esac
    shift
done

export LARDER=${LARDER:-$here/../target/release/larder}
# shellcheck source-path=SCRIPTDIR source=interop/runtimes.sh
source "$parts/runtimes.sh"
# shellcheck source-path=SCRIPTDIR source=interop/text.sh
source "$parts/text.sh"
# shellcheck source-path=SCRIPTDIR source=interop/table.sh
source "$parts/table.sh"

if [[ -n $list ]]; then
    cells
    exit
fi
((EUID == 0)) || die "run it as root: it mounts, and runtimes start containers"
[[ -x $LARDER ]] || die "there is no $LARDER: make build"
LARDER=$(realpath "$LARDER")
for program in docker-registry skopeo python3 busybox jq unshare pivot_root; do
    command -v "$program" >/dev/null || die "$program is not installed (make deps)"
done
if [[ -z $inside ]]; then
    # Programs and the upper layers of nodes. A tmpfs is mounted here, because overlayfs refuses an upper
    # directory inside a lower one.
    memory=$(mktemp -d)
    # Volumes and the directories of runtimes.
    disk=$(mktemp -d)
    cgroup=$(findmnt --noheadings --first-only --output TARGET --types cgroup2) || die "no cgroup 2 is mounted"
    cgroup+=/larder-interop.$$
    mkdir "$cgroup"
    export memory disk cgroup
    # Mounts and processes end with the namespaces.
    trap 'find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || true; rm -rf "$disk" "$memory"' EXIT
    trap 'kill -KILL "$child"; wait "$child" 2>/dev/null || true; exit 130' INT TERM
    arguments=(--inside --only "$only")
    [[ -z $keep ]] || arguments+=(--keep "$keep")
    unshare --mount --propagation private --pid --fork --kill-child --mount-proc --net "$0" "${arguments[@]}" &
    child=$!
    code=0
    wait "$child" || code=$?
    exit "$code"
fi
mount -t tmpfs -o mode=0700 larder-interop "$memory"

# shellcheck source-path=SCRIPTDIR source=interop/volumes.sh
source "$parts/volumes.sh"
make_volumes
mkdir "$memory/results"
while read -r cell; do
    [[ $cell =~ $only ]] || continue
    runtime=${cell%%/*} feature=${cell#*/}
    make_programs "$runtime"
    result=$memory/results/$runtime.$feature
    mkdir "$result"
    if missing "$runtime" >"$result/why"; then
        echo "not run" >"$result/outcome"
        continue
    fi
    code=0
    (
        echo 0 >"$cgroup/cgroup.procs"
        exec timeout --kill-after 10 300 unshare --mount --propagation private --pid --fork --kill-child --net --cgroup \
            "$0" --cell "$runtime" "$feature" "$result"
    ) >"$result/log" 2>&1 </dev/null || code=$?
    case $code in
        0) echo works >"$result/outcome" ;;
        77) echo "not run" >"$result/outcome" ;;
        78) echo differs >"$result/outcome" ;;
        124) echo fails >"$result/outcome" && echo "not finished after 300 s" >"$result/why" ;;
        *) echo fails >"$result/outcome" ;;
    esac
    echo "interop: $cell: $(<"$result/outcome")" >&2
    [[ -z $keep ]] || { mkdir -p "$keep" && cp "$result/log" "$keep/$runtime.$feature.log"; }
    rm -rf "${disk:?}/node" "${memory:?}/node"
    find "$cgroup" -mindepth 1 -depth -type d -exec rmdir {} + 2>/dev/null || true
done < <(cells)
print_table
