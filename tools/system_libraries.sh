#!/bin/sh
# Make sure of what pip cannot bring: Python's venv module and headers, a C++ compiler, and EGL.
# Installed through apt-get when it is there and we may; otherwise named.
# Usage: tools/system_libraries.sh [python3]
set -eu
python=${1:-python3}
missing=""

"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || {
    echo "error: $python is $("$python" --version); Python 3.10 to 3.13 is needed (make PYTHON=python3.12 ...)" >&2
    exit 2
}
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python$version-venv"
"$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
    missing="$missing python$version-dev"
command -v c++ >/dev/null || missing="$missing g++"
"$python" -c 'import ctypes; ctypes.CDLL("libEGL.so.1"); ctypes.CDLL("libGL.so.1")' 2>/dev/null ||
    missing="$missing libegl1 libgl1 libgles2 libgl1-mesa-dri"

[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing system packages:$missing"
    apt-get update -qq
    # shellcheck disable=SC2086  # a list of packages
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
else
    echo "error: these system packages are missing; install them and try again:" >&2
    echo "  sudo apt-get install$missing" >&2
    exit 2
fi
