#!/usr/bin/env bash
# Volumes of kind directory and disk, and the effect of each choice about a disk: the same two images from a
# registry on loopback.
#
#   many   60,000 small files in 3 layers
#   few    four large files (libraries of this machine, or random bytes) in 4 layers
#
# `directory` and `disk` are the builds that a user runs, each timed until its volume is durable. The builder
# of a disk is confined, as in `directory-confined`. The other variants are a disk made by hand: mounted,
# filled as a directory, unmounted and flushed. Each differs from `by-hand` in one choice. `reuse` is a disk
# that copies its layers from another disk, which was built before the clock starts; `reuse-directory` is the
# same with directories. The variants take turns. Every run gets its own directory, and nothing is removed
# before the end, because filling a file system is slow after many deletions. Prints all walls. Needs root.
# Usage: disk.sh [VARIANT...]; RUNS (3), SIZE (4G), HOST, LARDER and TMPDIR are taken from the environment.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
larder=$(realpath "${LARDER:-$here/../target/release/larder}")
runs=${RUNS:-3} size=${SIZE:-4G}

if ((EUID != 0)); then
    echo "disk: must run as root, because it mounts disks" >&2
    exit 77
fi
if [[ ${1:-} != --in-namespace ]]; then
    exec unshare --mount --propagation private "$0" --in-namespace "$@"
fi
shift
variants=("$@")
((${#variants[@]})) || variants=(directory directory-confined disk reuse reuse-directory by-hand sparse written buffered block-512 journal ratio-16384 packed lazytime dioread_nolock dioread_lock)

dir=$(mktemp -d)
registry=
cleanup() {
    [[ -z $registry ]] || kill "$registry" 2>/dev/null || true
    umount --quiet --lazy "$dir"/host/*/m "$dir/host" 2>/dev/null || true
    [[ ! -e $dir/host.img ]] || losetup --associated "$dir/host.img" | cut -d: -f1 | xargs --no-run-if-empty losetup --detach || true
    rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# shellcheck source=benches/images.sh
. "$here/images.sh"
start_registry
new_image many
for number in 0 1 2; do
    small_files many "$number" 20000
done
new_image few
for number in 0 1 2 3; do
    large_files few "$number" 1 160M
done
push_images

# The host file system: the one of TMPDIR, or with HOST=SIZE a new ext4 with default options, from which
# nothing was ever removed. With HOST, a disk is one loop device deeper than a directory.
mkdir "$dir/host"
if [[ -n ${HOST:-} ]]; then
    truncate --size "$HOST" "$dir/host.img"
    mkfs.ext4 -q -E nodiscard "$dir/host.img"
    mount -o noatime,noinit_itable "$(losetup --find --show --sector-size 4096 --direct-io=on "$dir/host.img")" "$dir/host"
fi
sync
printf 'many: %d MB, few: %d MB of tar; %d cores, %s, a disk of %s on %s\n\n' $((bytes[many] / 1000000)) \
    $((bytes[few] / 1000000)) "$(nproc)" "$(uname --kernel-release)" "$size" "${HOST:-the disk of $dir}"

build() { # kind, volume, image, more
    local kind=$1 volume=$2 image=$3
    shift 3
    "$larder" build --sizing warn --volume-kind "$kind" --volume "$volume" --size "${size}iB" "$@" \
        "$host/bench/$image:1" >"$dir/log" 2>&1
}
base='64bit,dir_index,dir_nlink,ext_attr,extent,extra_isize,filetype,flex_bg,huge_file,large_file,metadata_csum,sparse_super'
by_hand() { # variant, run's directory, image
    local features=none,$base ratio=8192 extended=lazy_itable_init=1,nodiscard direct=on block=4096 option=
    case $1 in
    journal) features+=,has_journal ;;
    ratio-16384) ratio=16384 ;;
    packed) extended+=,packed_meta_blocks=1 ;;
    buffered) direct=off ;;
    block-512) block=512 ;;
    lazytime) option=,lazytime ;;
    dioread_nolock) option=,dioread_nolock ;;
    dioread_lock) option=,dioread_lock ;;
    esac
    case $1 in
    sparse) truncate --size "$size" "$2/disk.img" ;;
    *) fallocate --length "$size" "$2/disk.img" ;;
    esac
    mkfs.ext4 -q -F -O "$features" -b 4096 -I 256 -i "$ratio" -m 0 -E "$extended" "$2/disk.img" 2>/dev/null
    local device
    device=$(losetup --find --show --sector-size "$block" --direct-io="$direct" "$2/disk.img")
    mkdir "$2/m"
    mount -o "noatime,nodev,nosuid,noinit_itable,nodiscard$option" "$device" "$2/m"
    build directory "$2/m" "$3"
    umount "$2/m"
    losetup --detach "$device"
    sync "$2/disk.img"
    e2fsck -fn "$2/disk.img" >"$dir/log" 2>&1
}
measure() { # variant, image
    local run
    run=$(mktemp -d "$dir/host/run.XXXX")
    if [[ $1 == written ]]; then
        # Written before the clock starts, to measure the effect of having no unwritten extents.
        dd if=/dev/zero of="$run/zeros" bs=1M count=$((${size%G} * 1024)) status=none conv=fsync
    fi
    local source=
    case $1 in
    reuse) source=disk ;;
    reuse-directory) source=directory ;;
    esac
    if [[ -n $source ]]; then
        mkdir "$run/volumes"
        build "$source" "$run/volumes/source" "$2" --share "$run"
    fi
    sync
    local start end
    start=$(date +%s%N)
    case $1 in
    directory | disk) build "$1" "$run/volume" "$2" ;;
    directory-confined) build directory "$run/volume" "$2" --confine ;;
    reuse | reuse-directory) build "$source" "$run/volumes/volume" "$2" --share "$run" ;;
    written)
        fallocate() { mv "$run/zeros" "$run/disk.img"; }
        by_hand "$1" "$run" "$2"
        unset -f fallocate
        ;;
    *) by_hand "$1" "$run" "$2" ;;
    esac
    end=$(date +%s%N)
    echo $(((end - start) / 1000000)) >>"$dir/$1.$2"
    # A disk is one file, which is removed at no cost.
    rm -f "$run"/disk.img "$run"/{,volumes/}*/disk.img
}

for ((run = 0; run < runs; run++)); do
    for image in many few; do
        for variant in "${variants[@]}"; do
            measure "$variant" "$image" || { cat "$dir/log" >&2; exit 70; }
        done
    done
done
printf '| variant | many: median s | MB/s | all | few: median s | MB/s | all |\n|---|---|---|---|---|---|---|\n'
for variant in "${variants[@]}"; do
    printf '| %s ' "$variant"
    for image in many few; do
        sort -n "$dir/$variant.$image" | awk -v total="${bytes[$image]}" '
            { wall[NR] = $1 / 1000; all = all (NR > 1 ? " " : "") sprintf("%.2f", $1 / 1000) }
            END { middle = wall[int((NR + 1) / 2)]; printf "| %.2f | %.0f | %s ", middle, total / 1e6 / middle, all }'
    done
    echo '|'
done
