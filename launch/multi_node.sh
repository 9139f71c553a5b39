#!/usr/bin/env bash
# Train on several machines: run this on each of them with the same values. The run directory and the corpus must be on
# a file system that all machines share.
#
#   NODES=2 HEAD=node1 bash launch/multi_node.sh --config configs/novels.yaml
#
# NODES      number of machines
# HEAD       host name or address of the rendezvous machine
# PORT       a free port of HEAD, the same on all machines (default: 29400)
# RUN_ID     name of the run, if several runs rendezvous at the same address (default: mlm_dist)
# PROCESSES  number of processes on this machine (default: the number of GPUs, or 1 without GPUs)
set -euo pipefail

: "${NODES:?set NODES to the number of machines}" "${HEAD:?set HEAD to the host name of the rendezvous machine}"
gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
processes=${PROCESSES:-$((gpus > 0 ? gpus : 1))}
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}

# Without this, workers that torch 2.13 restarts read the addresses of dead ones (pytorch#135712).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

exec torchrun --nnodes="$NODES" --nproc_per_node="$processes" \
    --rdzv_backend=c10d --rdzv_endpoint="$HEAD:${PORT:-29400}" --rdzv_id="${RUN_ID:-mlm_dist}" \
    -m mlm_dist.train "$@"
