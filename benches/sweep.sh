#!/usr/bin/env bash
# Shows how the time of a build grows with its input: images of one kind in two sizes, ten times apart, from a
# registry on loopback to a synced file system.
#
#   bytes    one layer of 64 MB and of 640 MB, in files of 16 MB
#   files    one layer of 10,000 and of 100,000 small files
#   layers   12 and 120 layers of 200 small files
#   images   5 and 50 images of one layer of 500 small files each
#
# A build is linear if ten times the input takes ten times as long. Fixed costs at the start and for the seal
# make the ratio smaller. Every run gets its own new ext4. Needs root.
# Usage: sweep.sh [SWEEP...]; RUNS (3), LARDER and TMPDIR are taken from the environment.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
larder=$(realpath "${LARDER:-$here/../target/release/larder}")
runs=${RUNS:-3}

if ((EUID != 0)); then
    echo "sweep: must run as root, because it mounts file systems and layers keep owners" >&2
    exit 77
fi
if [[ ${1:-} != --in-namespace ]]; then
    # Use a new mount namespace: all mounts disappear with its last process.
    exec unshare --mount --propagation private "$0" --in-namespace "$@"
fi
shift
((${#})) || set -- bytes files layers images

dir=$(mktemp -d)
registry=
cleanup() {
    [[ -z $registry ]] || kill "$registry" 2>/dev/null || true
    umount --quiet --lazy "$dir/fs" 2>/dev/null || true
    rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# shellcheck source=benches/images.sh
. "$here/images.sh"
start_registry

# Adds a layer of text files of 16 MB each.
text_files() { # image, number of the layer, files
    python3 - "$2" "$3" >"$dir/layer.tar" <<'PYTHON'
import io, random, sys, tarfile
layer, files = int(sys.argv[1]), int(sys.argv[2])
random.seed(layer)
words = [bytes(random.choice(b"etaoinshrdlu") for _ in range(random.randrange(2, 10))) for _ in range(4000)]
with tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
    for number in range(files):
        text = b" ".join(random.choices(words, k=2500000))[:16000000]
        member = tarfile.TarInfo(f"data/{layer}/file-{number}")
        member.size = len(text)
        tar.addfile(member, io.BytesIO(text))
PYTHON
    add_layer "$1"
}

# Images that are built together, and the amount of content, for each size of a sweep.
declare -A names amount
make() { # sweep, times
    local number
    names[$1$2]="$1-$2"
    case $1 in
    images) for ((number = 1; number < 5 * $2; number++)); do names[$1$2]+=" $1-$2-$number"; done ;;
    bytes | files | layers) ;;
    *)
        echo "sweep: unknown sweep $1; use bytes, files, layers or images" >&2
        exit 64
        ;;
    esac
    for image in ${names[$1$2]}; do new_image "$image"; done
    case $1 in
    bytes)
        text_files "$1-$2" "$2" $((4 * $2))
        amount[$1$2]="$((64 * $2)) MB"
        ;;
    files)
        small_files "$1-$2" "$2" $((10000 * $2))
        amount[$1$2]="$((10000 * $2)) files"
        ;;
    layers)
        for ((number = 0; number < 12 * $2; number++)); do small_files "$1-$2" $((1000 * $2 + number)) 200; done
        amount[$1$2]="$((12 * $2)) layers"
        ;;
    images)
        number=0
        for image in ${names[$1$2]}; do small_files "$image" $((5000 * $2 + number++)) 500; done
        amount[$1$2]="$((5 * $2)) images"
        ;;
    esac
}
for sweep; do
    make "$sweep" 1
    make "$sweep" 10
done
push_images

# Appends wall seconds, cpu seconds and peak KiB.
measure() { # sweep and times, form
    local references image
    references=()
    for image in ${names[$1]}; do references+=("$host/bench/$image:1"); done
    mkdir "$dir/fs"
    truncate --size 16G "$dir/disk"
    mkfs.ext4 -q "$dir/disk"
    mount -o loop,noatime,noinit_itable "$dir/disk" "$dir/fs"
    if ! /usr/bin/time --format '%e %U %S %M' --append --output "$dir/$1.$2" \
        "$larder" build --layer-format "$2" --volume "$dir/fs/cache" --size 14GiB "${references[@]}" >"$dir/log" 2>&1; then
        cat "$dir/log" >&2
        exit 70
    fi
    umount "$dir/fs"
    rm -r "$dir/fs" "$dir/disk"
    sync
}
median() { # file, column
    sort --numeric-sort --key "$2,$2" "$1" | awk -v column="$2" '{ value[NR] = $column } END { print value[int((NR + 1) / 2)] }'
}

printf '%d cores, %s\n\n' "$(nproc)" "$(uname --kernel-release)"
printf '| sweep | form | wall s | ten times: wall s | ratio | cpu s: ratio | peak RSS MiB |\n|---|---|---|---|---|---|---|\n'
for sweep; do
    for form in overlay erofs; do
        for ((run = 0; run < runs; run++)); do
            measure "${sweep}1" "$form"
            measure "${sweep}10" "$form"
        done
        for times in 1 10; do
            file=$dir/$sweep$times.$form
            awk '{ print $1, $2 + $3, $4 }' "$file" >"$file.sums"
            declare "wall$times=$(median "$file.sums" 1)" "cpu$times=$(median "$file.sums" 2)" \
                "peak$times=$(median "$file.sums" 3)"
        done
        # shellcheck disable=SC2154  # `declare` above assigns them.
        awk -v amount="${amount[${sweep}1]}, ${amount[${sweep}10]}" -v form="$form" -v w1="$wall1" -v w10="$wall10" \
            -v c1="$cpu1" -v c10="$cpu10" -v p1="$peak1" -v p10="$peak10" \
            'BEGIN { printf "| %s | %s | %.2f | %.2f | %.1f | %.1f | %.0f, %.0f |\n", amount, form, w1, w10, w10 / w1, c10 / c1, p1 / 1024, p10 / 1024 }'
    done
done
