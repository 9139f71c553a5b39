#!/usr/bin/env bash
# Train under SLURM: one torchrun on each node, which starts a process for each GPU, or a single one without GPUs.
#
#   sbatch slurm/train.sh                                  # trains configs/novels.yaml
#   sbatch --nodes=4 slurm/train.sh --config my.yaml       # flags of the training after the script's name
#
# Submit it from the project's folder, which has to lie, as the run directory and the corpus do, on a file system that
# all nodes share. A job that comes near its time limit, is preempted or loses a node saves what it can, goes back into
# the queue and continues. After scancel, submit it again to continue.
#SBATCH --job-name=mlm_dist
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1            # the task is torchrun
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180            # this shell is warned 180 s before that: time for a step and a checkpoint
#SBATCH --requeue
#SBATCH --open-mode=append             # a second try of the job must not erase the log of the first
#SBATCH --output=%x-%j.out
# GPUs are asked for as your site wants it, for one: sbatch --gpus-per-node=8 slurm/train.sh
set -euo pipefail

cd "$SLURM_SUBMIT_DIR"
# The project's own environment where there is one; else what the shell that submitted had.
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"
[ $# -gt 0 ] || set -- --config configs/novels.yaml
config=$(python -m mlm_dist.train "$@" --print_config) # a misspelt flag ends the job here
run_dir=$(python -c 'import sys, yaml; print(yaml.safe_load(sys.stdin)["run_dir"])' <<<"$config")

newest() { find "$run_dir/checkpoints" -maxdepth 1 -name 'step-*' 2>/dev/null | sort | tail -n 1 || true; }
finished() { stat --format=%y "$run_dir/DONE" 2>/dev/null || true; } # when

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p) # not `head`, which would break the pipe of a long list
getent hosts "$head" >/dev/null || head=$(scontrol show node "$head" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
port=$((10000 + SLURM_JOB_ID % 5000)) # differs between jobs, clear of srun's and of the system's own range
gpus=${SLURM_GPUS_ON_NODE:-0}
processes=$((gpus > 0 ? gpus : 1))
cores=${SLURM_CPUS_ON_NODE:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # pytorch#135712: restarted workers would read addresses of dead ones

# What tells the training to stop is the file STOP: a signal would have to pass through srun and torchrun, which by
# itself dies of USR1. With scancel and at the time limit itself, Slurm sends TERM to this shell as well as to the
# processes; with preemption to the processes alone.
warned='' cancelled='' newest_before=$(newest) finished_before=$(finished)
rm -f "$run_dir/STOP"
trap 'heard=yes warned=yes; mkdir -p "$run_dir"; touch "$run_dir/STOP"' USR1
trap 'heard=yes cancelled=yes' TERM

echo "job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}, on $SLURM_JOB_NODELIST: $processes processes a node," \
    "meeting at $head:$port"
echo "the run is in $run_dir; \`touch $run_dir/STOP\` stops it," \
    "\`sbatch --nodes=$SLURM_NNODES slurm/train.sh$(printf ' %q' "$@")\` continues it"

# Without --cpu-bind=none some sites bind the one task of a node, and all that it starts, to one core.
srun --kill-on-bad-exit=1 --cpu-bind=none torchrun \
    --nnodes="$SLURM_NNODES" --nproc_per_node="$processes" --max-restarts="${MAX_RESTARTS:-3}" \
    --rdzv_backend=c10d --rdzv_endpoint="$head:$port" --rdzv_id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" \
    --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2 \
    -m mlm_dist.train "$@" &
# bash runs a trap only between commands, and `wait` is one that a signal ends early: then it has to wait again.
code=0
while :; do
    heard='' status=0
    wait $! || status=$?
    [ "$status" -eq 127 ] || code=$status # 127: it had ended before the signal came
    [ -n "$heard" ] || break
done

if [ -e "$run_dir/DONE" ] && [ "$(finished)" != "$finished_before" ]; then
    exit 0 # whatever torchrun said after that
fi
[ -z "$cancelled" ] || exit "$code"
if ! scontrol show job "$SLURM_JOB_ID" | grep -q 'PreemptTime=[0-9]'; then
    # Whoever is not preempted may have been stopped by a STOP file of yours or by train.time_limit: that is no signal.
    stopped=$(cat "$run_dir/STOPPED" 2>/dev/null || true)
    if [ -z "$warned" ] && [ -n "$stopped" ] && [[ $stopped != SIG* ]]; then exit "$code"; fi
    # Or be warned, or have lost a node, or have failed. If it has saved something, it comes further the next time; if
    # not, it would end like this each time.
    if [ "$(newest)" = "$newest_before" ]; then
        echo "job $SLURM_JOB_ID has made no progress since it started and does not go back into the queue" >&2
        exit 1
    fi
fi
echo "job $SLURM_JOB_ID goes back into the queue"
trap - TERM USR1 # Slurm ends this shell with TERM now
scontrol requeue "$SLURM_JOB_ID"
