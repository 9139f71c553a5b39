#!/usr/bin/env bash
# Train on all GPUs of this machine, or with one process on all its cores if it has no GPU.
#
#   bash launch/single_node.sh --config configs/novels.yaml
#   PROCESSES=4 bash launch/single_node.sh --config configs/novels.yaml --train.batch_size 512 --run_dir runs/large
#
# The same command continues a run that was stopped or killed.
set -euo pipefail

# torch respects CUDA_VISIBLE_DEVICES; nvidia-smi does not.
gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
cores=$(getconf _NPROCESSORS_ONLN)
processes=${PROCESSES:-$((gpus > 0 ? gpus : 1))}

# If this is unset, torchrun sets it to 1: too few threads for a process with several cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}

# --standalone: rendezvous at a free port of this machine.
exec torchrun --standalone --nproc_per_node="$processes" -m mlm_dist.train "$@"
