#!/usr/bin/env bash
# What to run before each commit: lint, format, types, and the tests that start no process. Flags are passed on to pytest.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "$0")/environment.sh" test
set -euo pipefail

ruff check .
ruff format --check .
mypy
python -m pytest --numprocesses=2 --quiet --without-processes -m "not slow" "$@"
