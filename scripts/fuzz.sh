#!/usr/bin/env bash
# Fuzzes every target for a bounded time: `fuzz.sh [seconds per target, default 20] [target...]`.
# Stable Rust and a C++ compiler are enough: coverage comes from options of the stable compiler, libFuzzer from a crate.
# Fails on any crash; prints the input's file and how to run it again. See docs/FUZZING.md.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-20}
[ $# -gt 0 ] && shift
case $seconds in
'' | *[!0-9]* | 0)
    echo "fuzz.sh: '$seconds' is no number of seconds; usage: fuzz.sh [seconds per target] [target...]" >&2
    exit 64
    ;;
esac
mapfile -t targets < <(find fuzz/fuzz_targets -name '*.rs' -printf '%f\n' | sed 's/\.rs$//' | sort)
for target in "$@"; do
    [ -f "fuzz/fuzz_targets/$target.rs" ] || {
        echo "fuzz.sh: there is no target '$target'; there are: ${targets[*]}" >&2
        exit 64
    }
done
[ $# -gt 0 ] && targets=("$@")
command -v c++ >/dev/null || {
    echo "fuzz.sh: libFuzzer needs a C++ compiler (Debian and Ubuntu: apt install g++)" >&2
    exit 69
}

# The largest input worth trying, and the memory that a target may use: a crash where one connection could take more.
max_input_bytes=8192
max_memory_mib=1024
# Longest run of one input.
max_input_s=10

out=target/fuzz
host=$(rustc -vV | sed -n 's/^host: //p')
# --target keeps these away from build scripts and macros.
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"
bins=()
for target in "${targets[@]}"; do bins+=(--bin "$target"); done
${CARGO:-cargo} build --manifest-path fuzz/Cargo.toml --target-dir "$out" --release --target "$host" "${bins[@]}"

last() { grep -o "$1" "$2" | tail -n 1 | grep -o '[0-9]\+' | head -n 1 || true; }

# Fuzzes one target and leaves its row in $out/<target>.row.
fuzz() {
    local target=$1 found=0
    local corpus=$out/corpus/$target crashes=$out/crashes/$target log=$out/$target.log dictionary=()
    mkdir -p "$corpus" "$crashes"
    [ -f "fuzz/dictionaries/$target.dict" ] && dictionary=("-dict=fuzz/dictionaries/$target.dict")
    printf '%s: fuzzing for %s s\n' "$target" "$seconds"
    "$out/$host/release/$target" -max_total_time="$seconds" -max_len=$max_input_bytes -timeout=$max_input_s \
        -rss_limit_mb=$max_memory_mib -artifact_prefix="$crashes/" -print_final_stats=1 "${dictionary[@]}" \
        "$corpus" "fuzz/seeds/$target" >"$log" 2>&1 || found=1
    if [ "$found" = 1 ]; then
        grep -E -A3 'panicked at|ERROR: libFuzzer|Test unit written' "$log" | head -n 20 || tail -n 20 "$log"
        echo "again: $out/$host/release/$target <the file above>; whole log: $log"
    fi
    echo "$target|$(last 'number_of_executed_units: *[0-9]*' "$log")|$(last 'cov: [0-9]*' "$log")|$(last 'corp: [0-9]*' "$log")|$found" >"$out/$target.row"
}

# As many at a time as there are cores.
for target in "${targets[@]}"; do
    rm -f "$out/$target.row"
    while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do wait -n || true; done
    fuzz "$target" &
done
wait

failed=0
printf '\n%-18s %12s %10s %8s %8s\n' target executions coverage corpus crashes
for target in "${targets[@]}"; do
    # A target without a row has not run to its end.
    IFS='|' read -r _ executions coverage corpus crashes <"$out/$target.row" || executions='' coverage='' corpus='' crashes='?'
    printf '%-18s %12s %10s %8s %8s\n' "$target" "${executions:-?}" "${coverage:-?}" "${corpus:-?}" "$crashes"
    [ "$crashes" = 0 ] || failed=1
done
exit $failed
