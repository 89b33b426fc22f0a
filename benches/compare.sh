#!/usr/bin/env bash
# Compares larder with podman, containerd, and skopeo with umoci. They unpack images of five shapes from a
# registry on loopback, each to a synced file system.
#
#   py      this machine's /usr/lib/*-linux-gnu, /usr/share, /usr/include and Python, one layer each
#   pyzstd  the same, compressed with zstd
#   ml      a few huge files (libraries of this machine, or random bytes) in two layers
#   node    100,000 small files in one layer, and a small layer
#   many    40 layers of 300 small files, and one of 6,000
#
# Every run gets its own new ext4 (a sparse file, loop-mounted). On one that is cleared and filled again, the
# result would depend on how it avoids inodes that were just freed. The tools take turns; registry and tool
# share the processors. Prints a table of medians for each image. Needs root.
# Usage: compare.sh [IMAGE...]; RUNS (3), TOOLS, LARDER and TMPDIR are taken from the environment. BASE names
# another larder program, which the tools larder_base and larder_erofs_base run. CONTAINERD names a directory
# with the containerd and ctr of version 2.2 or newer, which the tools containerd_new and containerd_new_erofs
# run with ranges and parallel unpacking; it uses igzip (package isal) and mkfs.erofs 1.8 or newer from PATH.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
larder=$(realpath "${LARDER:-$here/../target/release/larder}")
base=$(realpath "${BASE:-$larder}")
containerd=${CONTAINERD:-/usr/bin}
runs=${RUNS:-3}
read -ra tools <<<"${TOOLS:-larder larder_erofs podman_pull containerd_pull skopeo_umoci}"

if ((EUID != 0)); then
    echo "compare: must run as root, because it mounts file systems and layers keep owners" >&2
    exit 77
fi
if [[ ${1:-} != --in-namespace ]]; then
    # Use a new mount namespace: all mounts disappear with its last process.
    exec unshare --mount --propagation private "$0" --in-namespace "$@"
fi
shift
((${#})) || set -- py pyzstd ml node many

dir=$(mktemp -d)
registry=
cleanup() {
    [[ -z $registry ]] || kill "$registry" 2>/dev/null || true
    umount --quiet --recursive --lazy "$dir/fs" 2>/dev/null || true
    rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# shellcheck source=benches/images.sh
. "$here/images.sh"
start_registry

py_layers() { # image
    local path
    for path in "/usr/lib/$(uname -m)-linux-gnu" /usr/share /usr/include /usr/libexec /usr/lib/python3*; do
        tar --create --file "$dir/layer.tar" --numeric-owner --sort name --directory / "${path#/}" 2>/dev/null
        add_layer "$1"
    done
}
make() { # image
    local number
    case $1 in
    py | pyzstd) py_layers "$1" ;;
    ml)
        large_files "$1" 2 4 300M
        large_files "$1" 0 2 300M
        ;;
    node)
        small_files "$1" 0 100000
        small_files "$1" 1 500
        ;;
    many)
        small_files "$1" 40 6000
        for number in {0..39}; do
            small_files "$1" "$number" 300
        done
        ;;
    *)
        echo "compare: unknown image $1; use py, pyzstd, ml, node or many" >&2
        exit 64
        ;;
    esac
}
for shape; do
    new_image "$shape"
    make "$shape"
done
push_images

# Commands of the tools, for the file system at $1 and the image $2. The table uses these names.
larder() { "$larder" build --volume "$1/cache" --size 14GiB "$2"; }
larder_erofs() { "$larder" build --layer-format erofs --volume "$1/cache" --size 14GiB "$2"; }
larder_base() { "$base" build --volume "$1/cache" --size 14GiB "$2"; }
larder_erofs_base() { "$base" build --layer-format erofs --volume "$1/cache" --size 14GiB "$2"; }
podman_pull() {
    podman --root "$1/root" --runroot "$1/run" --tmpdir "$1/tmp" --storage-driver overlay \
        --cgroup-manager cgroupfs --events-backend none pull --quiet --tls-verify=false "$2"
}
containerd_pull() {
    printf 'version = 2\nroot = "%s"\nstate = "%s"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "%s"\n[ttrpc]\naddress = "%s"\n' \
        "$1/root" "$1/state" "$1/socket" "$1/ttrpc" >"$1/config.toml"
    containerd --config "$1/config.toml" 2>/dev/null &
    local daemon=$! status=0
    until ctr --address "$1/socket" version >/dev/null 2>&1; do sleep 0.02; done
    ctr --address "$1/socket" images pull --plain-http "$2" || status=$?
    kill "$daemon"
    wait "$daemon" || true
    return "$status"
}
# Pulls with the newest containerd, which unpacks with a snapshotter while it downloads.
pull_with_new_containerd() { # directory, reference, snapshotter, differ
    cat >"$1/config.toml" <<TOML
version = 3
root = "$1/root"
state = "$1/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
[grpc]
address = "$1/socket"
[ttrpc]
address = "$1/ttrpc"
[plugins."io.containerd.transfer.v1.local"]
max_concurrent_downloads = 8
max_concurrent_unpacks = 4
concurrent_layer_fetch_buffer = 8388608
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux"
snapshotter = "$3"
differ = "$4"
TOML
    "$containerd/containerd" --config "$1/config.toml" 2>"$1/log" &
    local daemon=$! status=0
    until "$containerd/ctr" --address "$1/socket" version >/dev/null 2>&1; do sleep 0.02; done
    "$containerd/ctr" --address "$1/socket" images pull --plain-http --snapshotter "$3" "$2" || status=$?
    kill "$daemon"
    wait "$daemon" || true
    ((status == 0)) || tail -n 20 "$1/log" >&2
    return "$status"
}
containerd_new() { pull_with_new_containerd "$1" "$2" overlayfs walking; }
containerd_new_erofs() { pull_with_new_containerd "$1" "$2" erofs erofs; }
skopeo_umoci() {
    skopeo copy --quiet --insecure-policy --src-tls-verify=false "docker://$2" "oci:$1/layout:files" &&
        umoci unpack --image "$1/layout:files" "$1/bundle"
}
export -f larder larder_erofs larder_base larder_erofs_base podman_pull containerd_pull skopeo_umoci
export -f pull_with_new_containerd containerd_new containerd_new_erofs
export larder base containerd

# Appends wall seconds, cpu seconds and the peak KiB of the largest process.
measure() { # tool, image
    mkdir "$dir/fs"
    truncate --size 16G "$dir/disk"
    mkfs.ext4 -q "$dir/disk"
    mount -o loop,noatime,noinit_itable "$dir/disk" "$dir/fs"
    mkdir "$dir/fs/scratch"
    if ! TMPDIR=$dir/fs/scratch /usr/bin/time --format '%e %U %S %M' --append --output "$dir/$1.$2" \
        bash -c "$1 \"\$0\" \"\$1\" && sync --file-system \"\$0\"" "$dir/fs" "$host/bench/$2:1" >"$dir/log" 2>&1; then
        cat "$dir/log" >&2
        exit 70
    fi
    # podman and containerd leave their mounts behind.
    umount --recursive "$dir/fs"
    rm -r "$dir/fs" "$dir/disk"
    sync
}

printf '%d cores, %s\n' "$(nproc)" "$(uname --kernel-release)"
for shape; do
    for ((run = 0; run < runs; run++)); do
        for tool in "${tools[@]}"; do
            # umoci does not support zstd.
            [[ $tool == skopeo_umoci && $shape == pyzstd ]] || measure "$tool" "$shape"
        done
    done
    printf '\n**%s**: %d layers, %d MB of tar, %d MB compressed\n\n' "$shape" "${layers[$shape]}" \
        $((bytes[$shape] / 1000000)) $((compressed[$shape] / 1000000))
    printf '| tool | wall s | all walls | cpu s | MB/s | peak RSS MiB |\n|---|---|---|---|---|---|\n'
    for tool in "${tools[@]}"; do
        [[ -e $dir/$tool.$shape ]] || continue
        sort --numeric-sort "$dir/$tool.$shape" | awk -v tool="${tool//_/ }" -v total="${bytes[$shape]}" '
            { wall[NR] = $1; cpu[NR] = $2 + $3; if ($4 > peak) peak = $4; all = all (NR > 1 ? " " : "") $1 }
            END {
                middle = int((NR + 1) / 2)
                printf "| %s | %.2f | %s | %.1f | %.0f | %.0f |\n",
                    tool, wall[middle], all, cpu[middle], total / 1e6 / wall[middle], peak / 1024
            }'
    done
done
