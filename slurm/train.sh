#!/usr/bin/env bash
# Train under SLURM: one torchrun on each node, which starts a process for each GPU, or a single one without GPUs.
#
#   sbatch slurm/train.sh                                  # trains configs/novels.yaml
#   sbatch --nodes=4 slurm/train.sh --config my.yaml       # flags of the training after the script's name
#
# Submit it from the project's folder, which has to lie, as the run directory and the corpus do, on a file system that
# all nodes share. Submit it again to continue.
#SBATCH --job-name=mlm_dist
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1            # the task is torchrun
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --open-mode=append             # a second try of the job must not erase the log of the first
#SBATCH --output=%x-%j.out
# GPUs are asked for as your site wants it, for one: sbatch --gpus-per-node=8 slurm/train.sh
set -euo pipefail

cd "$SLURM_SUBMIT_DIR"
# The project's own environment where there is one; else what the shell that submitted had.
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"
[ $# -gt 0 ] || set -- --config configs/novels.yaml

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((10000 + SLURM_JOB_ID % 5000)) # differs between jobs, clear of srun's and of the system's own range
gpus=${SLURM_GPUS_ON_NODE:-0}
processes=$((gpus > 0 ? gpus : 1))
cores=${SLURM_CPUS_ON_NODE:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # pytorch#135712: restarted workers would read addresses of dead ones

echo "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST: $processes processes a node, meeting at $head:$port"
exec srun --kill-on-bad-exit=1 torchrun \
    --nnodes="$SLURM_NNODES" --nproc_per_node="$processes" \
    --rdzv_backend=c10d --rdzv_endpoint="$head:$port" --rdzv_id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" \
    -m mlm_dist.train "$@"
