#!/usr/bin/env bash
# larder against podman, and against skopeo with umoci: one image from a registry on loopback to a synced file system.
#
# The image is made of this machine's own directories, one layer each, at least 1 GB in all. Every run gets a new ext4
# of its own (a sparse file, loop-mounted): one that is cleared and filled again would be measured for how it avoids
# inodes that were freed a moment ago. The tools take turns. Prints a table of medians. Needs root.
# Usage: compare.sh [DIRECTORY...]; RUNS (3) and TMPDIR are taken from the environment.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
larder=$(realpath "${LARDER:-$here/../target/release/larder}")
runs=${RUNS:-3}

if ((EUID != 0)); then
    echo "compare: run it as root: it mounts file systems, and layers keep owners" >&2
    exit 77
fi
if [[ ${1:-} != --in-namespace ]]; then
    # A mount namespace of its own: whatever is mounted below is gone with the last process in it.
    exec unshare --mount --propagation private "$0" --in-namespace "$@"
fi
shift
((${#})) || set -- "/usr/lib/$(uname -m)-linux-gnu" /usr/share /usr/include /usr/libexec /usr/lib/python3*

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
image=$host/bench/files:1
new_image files
files=0
for path; do
    tar --create --file "$dir/layer.tar" --numeric-owner --sort name --directory / "${path#/}" 2>/dev/null
    files=$((files + $(tar --list --file "$dir/layer.tar" | wc -l)))
    add_layer files
done
total=${bytes[files]}
if ((total < 1000000000)); then
    echo "compare: the layers have $total bytes; name more directories, to reach 1 GB" >&2
    exit 64
fi
compressed=$(find "$dir/layout/blobs" -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum }')
push_images
printf '%d layers, %d members, %d MB compressed, %d MB uncompressed; %d cores, %s\n\n' \
    $# "$files" $((compressed / 1000000)) $((total / 1000000)) "$(nproc)" "$(uname --kernel-release)"

# What each tool runs, on the file system at $1. The table's names are these.
larder() { "$larder" build --volume "$1/cache" --size 14GiB "$image"; }
larder_no_tar_split() { "$larder" build --volume "$1/cache" --size 14GiB --no-tar-split "$image"; }
podman_pull() {
    podman --root "$1/root" --runroot "$1/run" --tmpdir "$1/tmp" --storage-driver overlay \
        --cgroup-manager cgroupfs --events-backend none pull --quiet --tls-verify=false "$image"
}
skopeo_umoci() {
    skopeo copy --quiet --insecure-policy --src-tls-verify=false "docker://$image" "oci:$1/layout:files" &&
        umoci unpack --image "$1/layout:files" "$1/bundle"
}
export -f larder larder_no_tar_split podman_pull skopeo_umoci
export larder image

# Appends wall seconds, cpu seconds and peak KiB of the largest process.
measure() {
    mkdir "$dir/fs"
    truncate --size 16G "$dir/disk"
    mkfs.ext4 -q "$dir/disk"
    mount -o loop,noatime,noinit_itable "$dir/disk" "$dir/fs"
    mkdir "$dir/fs/scratch"
    if ! TMPDIR=$dir/fs/scratch /usr/bin/time --format '%e %U %S %M' --append --output "$dir/$1" \
        bash -c "$1 \"\$0\" && sync --file-system \"\$0\"" "$dir/fs" >"$dir/log" 2>&1; then
        cat "$dir/log" >&2
        exit 70
    fi
    # podman leaves its store mounted on itself.
    umount --recursive "$dir/fs"
    rm -r "$dir/fs" "$dir/disk"
    sync
}

tools=(larder larder_no_tar_split podman_pull skopeo_umoci)
for ((run = 0; run < runs; run++)); do
    for tool in "${tools[@]}"; do
        measure "$tool"
    done
done

printf '| tool | wall s | all walls | cpu s | MB/s | peak RSS MiB |\n|---|---|---|---|---|---|\n'
for tool in "${tools[@]}"; do
    sort --numeric-sort "$dir/$tool" | awk -v tool="${tool//_/ }" -v total="$total" '
        { wall[NR] = $1; cpu[NR] = $2 + $3; if ($4 > peak) peak = $4; all = all (NR > 1 ? " " : "") $1 }
        END {
            middle = int((NR + 1) / 2)
            printf "| %s | %.2f | %s | %.1f | %.0f | %.0f |\n",
                tool, wall[middle], all, cpu[middle], total / 1e6 / wall[middle], peak / 1024
        }'
done
