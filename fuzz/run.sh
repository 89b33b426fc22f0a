#!/usr/bin/env bash
# Builds the fuzz targets with a stable compiler, with coverage and without sanitizers, and runs each for some
# seconds. The code is safe Rust, so panics and overflows are caught without sanitizers. With nightly,
# `cargo fuzz run TARGET` offers more.
# Usage: run.sh SECONDS [TARGET...]
set -euo pipefail

seconds=${1:?usage: run.sh SECONDS [TARGET...]}
shift
cd "$(dirname "$0")"
((${#})) || set -- tar_reader pax tar_split manifest reference keyring prefetch erofs

coverage=(
    --cfg=fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares
)
# Set the target triple explicitly, so that build scripts and macros are built without coverage.
triple=$(rustc --version --verbose | sed -n 's/^host: //p')
RUSTFLAGS="${coverage[*]}" cargo build --release --target "$triple" "${@/#/--bin=}"

for target; do
    mkdir -p "corpus/$target" "artifacts/$target"
    echo "== $target, $seconds s"
    "target/$triple/release/$target" -max_total_time="$seconds" -rss_limit_mb=1024 -timeout=10 -print_final_stats=1 \
        -artifact_prefix="artifacts/$target/" "corpus/$target" 2>&1 | tail -n 12
done
