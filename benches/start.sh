#!/usr/bin/env bash
# Measures the time until the first process of a container runs: from an attached cache, and with a pull from
# a registry on loopback.
#
#   large   at least 1 GB in a few files (libraries of this machine, or random bytes), in 7 layers
#   many    60,000 small files in 3 layers
#
# A run is one `podman run`, or `ctr images pull` and `ctr run`, of a shell that prints one word. The page
# cache is dropped before. The clock stops when the word arrives. Variants that pull begin with an empty store
# of the runtime. The caches are disks, built and attached before the clock starts. The variants take turns.
# Prints all walls, medians and ratios. Needs root.
# Usage: start.sh; RUNS (5), LARDER and TMPDIR are taken from the environment.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
larder=$(realpath "${LARDER:-$here/../target/release/larder}")
runs=${RUNS:-5}

if ((EUID != 0)); then
    echo "start: must run as root, because it mounts disks and starts containers" >&2
    exit 77
fi
if [[ ${1:-} != --in-namespace ]]; then
    exec unshare --mount --propagation private "$0" --in-namespace "$@"
fi

dir=$(mktemp -d)
registry="" containerd="" snapshotter=""
cleanup() {
    local process
    for process in $containerd $snapshotter $registry; do
        kill "$process" 2>/dev/null || true
        wait "$process" 2>/dev/null || true
    done
    umount --quiet --recursive --lazy "$dir"/podman/root/overlay "$dir"/icv* 2>/dev/null || true
    rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# shellcheck source=benches/images.sh
. "$here/images.sh"
start_registry
for image in large many; do
    new_image "$image"
    shell "$image"
done
for ((number = 0; bytes[large] < 1000000000; number++)); do
    large_files large "$number" 1 180M
done
for number in 0 1 2; do
    small_files many "$number" 20000
done
push_images

export LARDER_STATE__DIR=$dir/state
mkdir "$dir/node"
attach() { "$larder" attach "$@" --node-root "$dir/node" --no-unit >"$dir/log" 2>&1 || { cat "$dir/log" >&2; exit 70; }; }
for image in large many; do
    "$larder" build --sizing warn --volume-kind disk --volume "$dir/volume-$image" --size 4GiB "$host/bench/$image:1" >"$dir/log" 2>&1
    attach "$dir/volume-$image" --at "$dir/icv-$image" --runtime podman
done

# crun needs either cgroup v2 or v1, but not both.
podman() {
    # shellcheck disable=SC2016  # The inner shell expands it.
    unshare --mount sh -c '
        if [ "$(stat -f -c %T /sys/fs/cgroup)" != cgroup2fs ]; then
            umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup
        fi
        exec podman "$@"' podman --storage-driver overlay --cgroup-manager cgroupfs --events-backend none \
        --root "$dir/podman/root" --runroot "$dir/podman/run" --tmpdir "$dir/podman/tmp" "$@"
}
podman_run() { # options before the image
    podman "$@" /bin/sh -c 'echo started'
}
limits=(--rm --cgroups=disabled --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 --network none)

start_containerd() {
    cat >"$dir/containerd.toml" <<TOML
version = 2
root = "$dir/containerd/root"
state = "$dir/containerd/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "$dir/containerd.sock"
[ttrpc]
address = "$dir/containerd.ttrpc"
[proxy_plugins.larder]
type = "snapshot"
address = "$dir/snapshotter.sock"
TOML
    "$larder" snapshotter --socket "$dir/snapshotter.sock" --root "$dir/snapshotter" 2>"$dir/snapshotter.log" &
    snapshotter=$!
    until [[ -S $dir/snapshotter.sock ]]; do sleep 0.05; done
    containerd --config "$dir/containerd.toml" >"$dir/containerd.log" 2>&1 &
    containerd=$!
    until ctr version >/dev/null 2>&1; do sleep 0.05; done
}
stop_containerd() {
    kill "$containerd" "$snapshotter"
    wait "$containerd" "$snapshotter" || true
    containerd="" snapshotter=""
    rm -rf "$dir/containerd" "$dir/snapshotter" "$dir/snapshotter.sock"
}
ctr() { command ctr --address "$dir/containerd.sock" "$@"; }
ctr_run() { # options before the image, image
    ctr run --rm "$@" "larder-bench-$$" /bin/sh -c 'echo started'
}

podman_pulls() { podman_run run "${limits[@]}" --pull always --quiet --tls-verify=false "$host/bench/$1:1"; }
podman_attached() {
    podman_run --storage-opt "additionalimagestore=$dir/icv-$1" run "${limits[@]}" --pull never "$host/bench/$1:1"
}
ctr_pulls() { ctr images pull --plain-http "$host/bench/$1:1" >/dev/null && ctr_run "$host/bench/$1:1"; }
ctr_attached() { ctr_run --snapshotter larder "$host/bench/$1:1"; }

measure() { # variant, image
    rm -rf "$dir/podman"
    if [[ $1 == ctr_* ]]; then
        start_containerd
    fi
    if [[ $1 == ctr_attached ]]; then
        attach "$dir/volume-$2" --at "$dir/icv-$2" --runtime containerd --preload --namespace default \
            --containerd "$dir/containerd.sock"
    fi
    sync
    echo 3 >/proc/sys/vm/drop_caches
    local start=${EPOCHREALTIME/./} log=$dir/log
    # The rest of the pipe, the teardown of the container, is not timed.
    # shellcheck disable=SC2094  # The log is printed after a failure.
    "$1" "$2" 2>"$log" | {
        read -r _ || { cat "$log" >&2; exit 70; }
        echo $(((${EPOCHREALTIME/./} - start) / 1000)) >>"$dir/$1.$2"
        cat >/dev/null
    }
    if [[ $1 == ctr_* ]]; then
        stop_containerd
    fi
    umount --quiet --recursive "$dir/podman/root/overlay" 2>/dev/null || true
}

printf 'large: %d MB, many: %d MB of tar; %d cores, %s, registry and caches on the disk of %s\n\n' $((bytes[large] / 1000000)) \
    $((bytes[many] / 1000000)) "$(nproc)" "$(uname --kernel-release)" "$dir"
for ((run = 0; run < runs; run++)); do
    for image in large many; do
        for variant in podman_pulls podman_attached ctr_pulls ctr_attached; do
            measure "$variant" "$image"
        done
    done
done

median() { sort -n "$1" | awk '{ wall[NR] = $1 } END { print wall[int((NR + 1) / 2)] }'; }
printf '| image | runtime | pulls: median ms (all) | attached: median ms (all) | ratio |\n|---|---|---|---|---|\n'
for image in large many; do
    for runtime in podman ctr; do
        pulls=$dir/${runtime}_pulls.$image attached=$dir/${runtime}_attached.$image
        printf '| %s | %s | %s (%s) | %s (%s) | %s |\n' "$image" "$runtime" \
            "$(median "$pulls")" "$(sort -n "$pulls" | xargs)" "$(median "$attached")" "$(sort -n "$attached" | xargs)" \
            "$(awk -v a="$(median "$pulls")" -v b="$(median "$attached")" 'BEGIN { printf "%.1f", a / b }')"
    done
done
