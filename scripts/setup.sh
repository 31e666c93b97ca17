#!/bin/sh
# Set up .venv with kmemd and one of its extras: `setup.sh test`, `setup.sh dev` or `setup.sh bench`.
# Installs the Debian packages that are missing when it runs as root, and names them when it does not.
# Running it again is safe, and quick when nothing changed.
set -eu

extra=${1:-test}
cd "$(dirname "$0")/.."
python=${PYTHON3:-python3}

headers_missing() {
    ! "$python" -c 'import os, sysconfig; os.stat(os.path.join(sysconfig.get_path("include"), "Python.h"))' 2>/dev/null
}

missing=
need() { missing="$missing $*"; }
command -v "$python" >/dev/null || need python3 python3-dev python3-venv
command -v fusermount3 >/dev/null || need fuse3
command -v pkg-config >/dev/null || need pkg-config
pkg-config --exists fuse3 2>/dev/null || need libfuse3-dev
command -v gcc >/dev/null || need gcc libc6-dev
if command -v "$python" >/dev/null; then
    headers_missing && need python3-dev
    "$python" -c 'import ensurepip, venv' 2>/dev/null || need python3-venv
fi

if [ -n "$missing" ]; then
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        echo "kmemd needs these packages first: apt-get install$missing" >&2
        exit 1
    fi
    echo "setup: installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # shellcheck disable=SC2086  # a list of words
    apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

if ! .venv/bin/python -c '' 2>/dev/null; then
    rm -rf .venv
    "$python" -m venv .venv
fi
echo "setup: pip install -e .[$extra] (compiles the core: a minute or two the first time)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$extra]"
.venv/bin/python -m compileall -q kmemd  # an editable install leaves that to the first start
touch ".venv/$extra.stamp"
