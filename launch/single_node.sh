#!/usr/bin/env bash
# Train on all GPUs of this machine, or with one process that uses all its cores where it has none.
#
#   bash launch/single_node.sh --config configs/novels.yaml
#   PROCESSES=4 bash launch/single_node.sh --config configs/novels.yaml --train.batch_size 512 --run_dir runs/large_batch
#
# Run it again to continue.
set -euo pipefail

# CUDA_VISIBLE_DEVICES counts, which nvidia-smi does not look at.
gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
cores=$(getconf _NPROCESSORS_ONLN)
processes=${PROCESSES:-$((gpus > 0 ? gpus : 1))}

# torchrun sets this to 1 where nobody has: too few threads for a process that has several cores to itself.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}

# --standalone: the processes meet at a port of this machine that is free.
exec torchrun --standalone --nproc_per_node="$processes" -m mlm_dist.train "$@"
