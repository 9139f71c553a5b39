#!/usr/bin/env bash
# Train on all GPUs of this machine, or on its CPU cores with one process each where it has none.
#
#   bash launch/single_node.sh --config configs/novels.yaml
#   PROCESSES=4 bash launch/single_node.sh --config configs/novels.yaml --train.batch_size 512
#
# Run it again to continue.
set -euo pipefail

gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
cores=$(getconf _NPROCESSORS_ONLN)
processes=${PROCESSES:-$((gpus > 0 ? gpus : cores))}

# torchrun sets this to 1 where nobody has: too few threads for a process that has several cores to itself.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}

# --standalone: the processes meet at a port of this machine that is free.
exec torchrun --standalone --nproc_per_node="$processes" -m mlm_dist.train "$@"
