#!/bin/sh
# Make .venv, or bring it up to date, with this package and the extras given: scripts/venv.sh example,test
# Does nothing where that has been done for the present setup.cfg and constraints.txt.
set -eu

extras=$1
room_gb=6
cd "$(dirname "$0")/.."

fail() {
    echo "error: $*" >&2
    exit 2
}

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    for candidate in ${PYTHON:-python3.11 python3 python3.12 python3.13 python}; do
        if new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    found=$("${PYTHON:-python3}" --version 2>&1 || true)
    fail "Python 3.11 or newer is needed; found: ${found:-none}. Install it, or name it: PYTHON=/path/to/python3.11 make ..."
}

# an empty file says what has been installed, and from what
source=$({ pwd; cat setup.cfg pyproject.toml constraints.txt; } | cksum | tr ' ' -)
stamp=.venv/installed-$source-$(echo "$extras" | tr , -)
if [ -f "$stamp" ] && new_enough .venv/bin/python; then
    exit 0
fi

python=$(find_python)
free_gb=$(df -Pk . | awk 'NR == 2 { print int($4 / 1024 / 1024) }')
if [ "$free_gb" -lt "$room_gb" ]; then
    fail "$room_gb GB of free disk are needed in $(pwd) for the environment and the models; $free_gb GB are free"
fi

if ! new_enough .venv/bin/python || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    echo "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv ||
        fail "$python cannot make virtual environments; on Debian and Ubuntu: apt install python3.11-venv"
fi
echo "installing recbole-dppmg[$extras] into .venv, a few minutes the first time"
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$extras]" ||
    fail "the installation failed, for the reason above; run the same command again to go on"
find .venv -maxdepth 1 -name 'installed-*' ! -name "installed-$source-*" -delete
touch "$stamp"
