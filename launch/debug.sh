#!/usr/bin/env bash
# Set up .venv, train a small model with configs/debug.yaml on one device, and fill some masks with it.
# Flags are passed on to `train`: bash launch/debug.sh --train.max_iters 200
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "$0")/environment.sh" train
set -euo pipefail

run_dir=runs/debug
rm -rf "$run_dir" # start from step 0 each time
python -m mlm_dist.train --config configs/debug.yaml --run_dir "$run_dir" "$@"
echo
python -m mlm_dist.fill --run "$run_dir" \
    "Aunt Zoë went up the stairs to the [MASK]." \
    "The ferry came in under the harbour [MASK]." \
    "\"I do not know,\" [MASK] Ned."
