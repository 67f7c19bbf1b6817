#!/bin/sh
# Installs what fastxfer needs from Debian and a Python package cannot bring:
#
#   g++        compiles the extension in csrc/ (left alone if some C++ compiler is there)
#   python3-venv, python3-dev   only for Debian's own python3, which comes without them
#   chromium   opens the report in the tests marked `browser`
#
# Says what it does, installs nothing that is there, ends at once if nothing is missing. As root it calls apt-get, as
# another user it calls sudo if that is installed; else it says what to ask an administrator for and exits with 1.
#
#   scripts/install-debian-packages.sh             compiler and browser
#   scripts/install-debian-packages.sh --no-browser   compiler only
#   scripts/install-debian-packages.sh --dry-run   only say what is missing
set -eu

browser=yes
dry=no
for word in "$@"; do
    case "$word" in
    --no-browser) browser=no ;;
    --dry-run) dry=yes ;;
    *)
        echo "usage: $0 [--no-browser] [--dry-run]" >&2
        exit 2
        ;;
    esac
done

have() { command -v "$1" >/dev/null 2>&1; }

missing=""
have "${CXX:-c++}" || have g++ || have clang++ || missing="$missing g++"
python=${PYTHON:-python3}
if ! have "$python"; then
    missing="$missing python3 python3-venv python3-dev"
else
    # A Python built elsewhere (/usr/local, pyenv, conda) brings both; asked for is only what this one lacks.
    "$python" -c 'import ensurepip' >/dev/null 2>&1 || missing="$missing python3-venv"
    "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
        missing="$missing python3-dev"
fi
if [ "$browser" = yes ]; then
    have chromium || missing="$missing chromium"
fi

if [ -z "$missing" ]; then
    echo "Debian packages: nothing is missing"
    exit 0
fi
echo "Debian packages missing:$missing"
[ "$dry" = no ] || exit 0

if ! have apt-get; then
    echo "There is no apt-get here: install the counterparts of$missing with this system's package manager." >&2
    exit 1
fi
if [ "$(id -u)" = 0 ]; then
    as_root=""
elif have sudo; then
    as_root=sudo
else
    echo "Neither root nor sudo: ask an administrator for: apt-get install --no-install-recommends$missing" >&2
    exit 1
fi

echo "Installing them with apt-get"
$as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq
# Word splitting is wanted: one word a package.
# shellcheck disable=SC2086
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
echo "Debian packages: done"
