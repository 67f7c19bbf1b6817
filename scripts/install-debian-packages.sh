#!/usr/bin/env bash
# Installs what the project needs from Debian, if it is missing:
#   g++, python3-venv   to build and install (the only ones with --build-only)
#   chromium            for the browser tests of the report
set -euo pipefail
wanted=()
command -v g++ >/dev/null || wanted+=(g++)
python3 -c 'import ensurepip' 2>/dev/null || wanted+=(python3-venv)
if [ "${1:-}" != --build-only ]; then
    command -v chromium >/dev/null || wanted+=(chromium)
fi
[ ${#wanted[@]} -eq 0 ] && exit 0
if ! command -v apt-get >/dev/null; then
    echo "please install: ${wanted[*]} (this script knows Debian's apt-get only)" >&2
    exit 1
fi
sudo=()
[ "$(id -u)" -eq 0 ] || sudo=(sudo)
echo "installing from Debian: ${wanted[*]}"
"${sudo[@]}" apt-get update -qq
DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq "${wanted[@]}"
