#!/usr/bin/env bash
# Everything that `make test` proves, in the order of what fails fastest.
set -euo pipefail
cd "$(dirname "$0")/.."
step() { printf '\n== %s\n' "$*"; }

step "formatting"
cargo fmt --all --check
step "lints"
cargo clippy --all-targets --locked -- -D warnings
step "tests"
cargo test --locked --no-fail-fast
