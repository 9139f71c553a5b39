#!/usr/bin/env bash
# Set up .venv, then lint, type check and test. Flags are passed on to pytest: bash launch/test.sh -k masking
# The long fault campaigns are left out; `bash launch/test.sh -m ""` runs them too.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "$0")/environment.sh" test
set -euo pipefail

ruff check .
ruff format --check .
mypy
# Three workers on two cores: a worker often waits for other processes. Files run in the order of their names. pytest-xdist
# would run those with few tests last, which are the slowest.
python -m pytest --numprocesses=3 --dist=loadfile --no-loadscope-reorder -m "not long" "$@"
