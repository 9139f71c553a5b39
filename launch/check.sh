#!/usr/bin/env bash
# What to run before each commit: lint, types, and the quick tests that start no process. Flags are passed on to pytest.
set -euo pipefail
exec bash "$(dirname "$0")/test.sh" --quiet --numprocesses=2 --without-processes -m "not slow" "$@"
