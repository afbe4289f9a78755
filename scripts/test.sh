#!/usr/bin/env bash
# Everything that `make test` proves, in the order of what fails fastest.
set -euo pipefail
cd "$(dirname "$0")/.."
step() { printf '\n== %s\n' "$*"; }

step "formatting"
cargo fmt --all --check
cargo fmt --manifest-path fuzz/Cargo.toml --check
scripts/tools.sh
step "spelling"
target/tools/bin/typos
step "dependencies: licences, sources, bans"
target/tools/bin/cargo-deny --locked check bans licenses sources
target/tools/bin/cargo-deny --manifest-path fuzz/Cargo.toml --locked --config "$PWD/deny.toml" check bans licenses sources
step "lints"
cargo clippy --all-targets --locked -- -D warnings
step "lints of the fuzz targets"
# Nothing is linked, so libFuzzer itself is not built; `make fuzz` does.
CUSTOM_LIBFUZZER_PATH="$PWD/Cargo.toml" \
    cargo clippy --manifest-path fuzz/Cargo.toml --target-dir target --locked -- -D warnings
step "tests"
cargo test --locked --no-run
# Thousands of seeds need a core and no clock; the tests mostly wait for speech in real time.
seeds=$(mktemp)
STENOCAST_SEEDS=2000 nice -n 19 cargo test --locked --test cluster_simulation >"$seeds" 2>&1 &
simulation=$!
failed=0
RUST_TEST_THREADS=${RUST_TEST_THREADS:-$((2 * $(nproc)))} cargo test --locked --no-fail-fast || failed=1
step "many more seeds of the nodes that take rooms from each other"
wait $simulation || failed=1
cat "$seeds"
exit $failed
