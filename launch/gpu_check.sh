#!/usr/bin/env bash
# Check the package on a GPU in nine minutes: speed, losses in each precision, kill and resume, tests. One JSON and a log.
# It uses the Python that is active, because a machine with a GPU has its own build of torch.
#
#   bash launch/gpu_check.sh --out gpu_check               # on a GPU
#   bash launch/gpu_check.sh --out gpu_check --data novels/   # with the recipe's loss on texts
#   bash launch/gpu_check.sh --out gpu_check --tiny        # a dry run, on a CPU too
set -euo pipefail
cd "$(dirname "$0")/.."
exec python launch/gpu_check.py "$@"
