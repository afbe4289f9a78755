#!/usr/bin/env bash
# Installs the checkers of tools.lock into target/tools, once for each version of that file.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=target/tools
if ! cmp -s scripts/tools.lock "$dir/tools.lock"; then
    echo "tools: installing the checkers of scripts/tools.lock"
    rm -rf "$dir"
    python3 -m venv "$dir"
    "$dir/bin/pip" install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r scripts/tools.lock
    cp scripts/tools.lock "$dir/tools.lock"
fi
