#!/usr/bin/env bash
# Train on several machines: start this on each of them, with the same values. The run directory and the corpus have
# to lie where all machines see them.
#
#   NODES=2 HEAD=node1 bash launch/multi_node.sh --config configs/novels.yaml
#
# NODES      number of machines
# HEAD       name or address of the machine where the processes meet
# PORT       of HEAD; any free one, the same everywhere (29400)
# RUN_ID     tells runs that meet at the same place apart (mlm_dist)
# PROCESSES  on this machine (its GPUs, else 1)
set -euo pipefail

: "${NODES:?set NODES to the number of machines}" "${HEAD:?set HEAD to the machine where the processes meet}"
gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
processes=${PROCESSES:-$((gpus > 0 ? gpus : 1))}
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}

# torch 2.13 lets a restarted worker read the addresses of dead ones (pytorch#135712) unless told not to.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

exec torchrun --nnodes="$NODES" --nproc_per_node="$processes" \
    --rdzv_backend=c10d --rdzv_endpoint="$HEAD:${PORT:-29400}" --rdzv_id="${RUN_ID:-mlm_dist}" \
    -m mlm_dist.train "$@"
