# shellcheck shell=bash
# Sourced by the launchers: creates .venv and installs the package with the versions of requirements.lock, once, and
# again after setup.cfg, pyproject.toml or requirements.lock has changed.
#
#   source launch/environment.sh       # the dependencies of training
#   source launch/environment.sh test  # those of the tests too

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

find_python() {
    local name
    for name in "${PYTHON:-python3}" python3 python3.14 python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "no Python 3.11 or newer with the venv module found: install one (Debian: apt-get install python3-venv)" \
        "or set PYTHON to its path" >&2
    exit 2
}

set_up() {
    local extra=$1 python stamp=.venv/installed-$1
    if [ ! -x .venv/bin/pip ]; then
        python=$(find_python) || exit 2
        "$python" -m venv .venv
    fi
    if ! cat setup.cfg pyproject.toml requirements.lock | cmp -s - "$stamp"; then
        echo "installing packages into .venv" >&2
        .venv/bin/python -m pip install --quiet --disable-pip-version-check \
            --constraint requirements.lock --editable ".[$extra]" >&2
        cat setup.cfg pyproject.toml requirements.lock >"$stamp"
    fi
}

set -e
set_up "${1:-train}"
set +e
export PATH="$PWD/.venv/bin:$PATH"
