#!/usr/bin/env bash
# Installs what a fresh Debian machine lacks: `setup.sh run` for the server and the demo, `setup.sh test` for the tests,
# `setup.sh fuzz` for the fuzzers.
# Says what it will install before it does. As root, or by sudo.
set -euo pipefail
purpose=${1:-run}

# program=package: installed when the program is missing
run_needs="cc=gcc ffmpeg=ffmpeg python3=python3 pip3=python3-pip"
test_needs="$run_needs gst-launch-1.0=gstreamer1.0-tools chromium=chromium node=nodejs npm=npm curl=curl"
fuzz_needs="cc=gcc c++=g++"
# package: asked of dpkg
test_packages="gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly gstreamer1.0-libav python3-venv nginx caddy faketime"

missing=()
case $purpose in
run) needs=$run_needs ;;
test) needs=$test_needs ;;
fuzz) needs=$fuzz_needs ;;
*)
    echo "setup.sh: '$purpose' is unknown; allowed: run, test, fuzz" >&2
    exit 64
    ;;
esac
for need in $needs; do
    command -v "${need%%=*}" >/dev/null || missing+=("${need#*=}")
done
if [ "$purpose" = test ]; then
    for package in $test_packages; do
        dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
    done
    PATH=$PATH:/usr/sbin command -v pgbouncer >/dev/null || missing+=(pgbouncer)
    ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing+=(postgresql)
fi

if ! command -v cargo >/dev/null; then
    echo "setup.sh: no Rust toolchain; install Rust 1.92 or newer first, see https://rustup.rs" >&2
    exit 1
fi
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
    echo "setup.sh: please install: ${missing[*]} (this script knows Debian's apt-get alone)" >&2
    exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || {
        echo "setup.sh: please install as root: apt-get install ${missing[*]}" >&2
        exit 1
    }
    as_root=(sudo)
fi
echo "setup: installing Debian packages: ${missing[*]}"
"${as_root[@]}" apt-get update -qq || echo "setup: the package lists could not be renewed, going on with those at hand" >&2
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null || {
    echo "setup.sh: apt-get failed; check the network and run the command again, it goes on where it stopped" >&2
    exit 1
}
