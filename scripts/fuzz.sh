#!/usr/bin/env bash
# Builds all fuzz targets with a stable compiler, and runs each on its seeds and its corpus, for more than a minute as many at a
# time as there are cores. There is coverage but no sanitizer: the code is safe Rust, so a panic or an overflow is enough to find a bug.
# With nightly, `cargo fuzz run TARGET` offers more.
# Usage: fuzz.sh [SECONDS [TARGET...]]
#
# fuzz/seeds/TARGET is in the repository. fuzz/corpus/TARGET grows with each run. A crashing input is written to
# fuzz/artifacts/TARGET, and its path is printed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../fuzz"

seconds=${1:-20}
shift $(($# > 0))
if (($# == 0)); then
    # Every file with an entry point. Cargo refuses one that Cargo.toml does not list.
    mapfile -t targets < <(grep --files-with-matches '^fuzz_target!' fuzz_targets/*.rs | xargs -n 1 basename --suffix .rs)
    set -- "${targets[@]}"
fi

coverage=(
    --cfg=fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares
)
# Set the target triple explicitly, so that build scripts and macros are built without coverage.
triple=$(rustc --version --verbose | sed -n 's/^host: //p')
build=$PWD/../target/fuzz
RUSTFLAGS="${coverage[*]}" "${CARGO:-cargo}" build --release --locked --target "$triple" --target-dir "$build" "${@/#/--bin=}"

# Prints the seeds of a target: the files in the repository, and for binary formats also files made here.
seeds() {
    local target=$1 made=$build/seeds/$1 format
    mkdir -p "$made"
    case $target in
    tar_reader | erofs)
        for format in ustar pax gnu; do
            tar --format="$format" --mtime=@0 --sort=name --blocking-factor=1 --create \
                --file="$made/$format.tar" seeds/pax
        done
        ;;
    prefetch)
        cp /bin/true "$made/elf"
        [[ ! -f /etc/ld.so.cache ]] || cp /etc/ld.so.cache "$made/cache"
        ;;
    esac
    echo "$made"
    [[ ! -d seeds/$target ]] || echo "seeds/$target"
}

# Runs one target. Prints one line if it succeeds, and the end of its log and the crashing input if it fails.
run() {
    local target=$1 log=$build/$1.log from
    mkdir -p "corpus/$target" "artifacts/$target"
    mapfile -t from < <(seeds "$target")
    if "$build/$triple/release/$target" -max_total_time="$seconds" -rss_limit_mb=1024 -timeout=10 -print_final_stats=1 \
        -artifact_prefix="artifacts/$target/" "corpus/$target" "${from[@]}" >"$log" 2>&1; then
        awk -v target="$target" '
            /^stat::number_of_executed_units/ { runs = $2 }
            /^stat::average_exec_per_sec/ { speed = $2 }
            / cov: / { for (i = 1; i < NF; i++) if ($i == "cov:") edges = $(i + 1) }
            END { printf "fuzz: %-12s %9d runs %8d/s %6d edges\n", target, runs, speed, edges }' "$log"
        return
    fi
    tail -n 40 "$log" >&2
    echo "fuzz: $target failed: fuzz/$(grep --only-matching "artifacts/$target/[^ ]*" "$log" | tail -n 1)" >&2
    return 1
}

# A short run is a check that nothing crashes soon: all targets share the cores. A long run searches.
at_once=$((seconds > 60 ? $(nproc) : $#))
failed=0
running=0
for target; do
    if ((running == at_once)); then
        wait -n || failed=1
        running=$((running - 1))
    fi
    run "$target" &
    running=$((running + 1))
done
while ((running > 0)); do
    wait -n || failed=1
    running=$((running - 1))
done
exit "$failed"
