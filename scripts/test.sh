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
# They mostly wait for speech in real time: twice as many as there are cores.
RUST_TEST_THREADS=${RUST_TEST_THREADS:-$((2 * $(nproc)))} cargo test --locked --no-fail-fast
step "many more seeds of the nodes that take rooms from each other"
STENOCAST_SEEDS=2000 cargo test --locked --test cluster_simulation
