#!/usr/bin/env bash
# Train under Slurm: one torchrun per node, which starts one process per GPU, or a single process without GPUs.
#
#   sbatch slurm/train.sh                                  # configs/novels.yaml on one node
#   sbatch --nodes=4 slurm/train.sh --config my.yaml       # flags of `train` follow the script's name
#
# Submit it from the project folder. That folder, the run directory and the corpus must be on a file system that all
# nodes share. A job that nears its time limit or is preempted saves a checkpoint, is requeued and continues. A job that
# loses a node is requeued and continues from its last checkpoint. After scancel, submit the job again to continue.
#SBATCH --job-name=mlm_dist
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1            # the task is torchrun
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180            # warns this shell 180 s before the limit: time for a step and a checkpoint
#SBATCH --requeue
#SBATCH --open-mode=append             # a requeued job appends to its log
#SBATCH --output=%x-%j.out
# How GPUs are requested depends on the site, for example: sbatch --gpus-per-node=8 slurm/train.sh
set -euo pipefail

cd "$SLURM_SUBMIT_DIR"
# The project's .venv if it exists, else the environment of the submitting shell.
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"
[ $# -gt 0 ] || set -- --config configs/novels.yaml
config=$(python -m mlm_dist.train "$@" --print_config) # a wrong flag ends the job here
run_dir=$(python -c 'import sys, yaml; print(yaml.safe_load(sys.stdin)["run_dir"])' <<<"$config")

newest() { find "$run_dir/checkpoints" -maxdepth 1 -name 'step-*' 2>/dev/null | sort | tail -n 1 || true; }
finished() { stat --format=%y "$run_dir/DONE" 2>/dev/null || true; } # when

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p) # not `head`, which breaks the pipe of a long list
getent hosts "$head" >/dev/null || head=$(scontrol show node "$head" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
port=$((10000 + SLURM_JOB_ID % 5000)) # differs between jobs, outside the ranges of srun and the system
gpus=${SLURM_GPUS_ON_NODE:-0}
processes=$((gpus > 0 ? gpus : 1))
cores=${SLURM_CPUS_ON_NODE:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # pytorch#135712: otherwise, restarted workers read addresses of dead ones

# The file STOP makes the training stop: a signal would have to pass through srun and torchrun, and USR1 kills torchrun
# by default. On scancel and at the time limit itself, Slurm sends TERM to this shell and to the processes; on
# preemption, to the processes only.
warned='' cancelled='' newest_before=$(newest) finished_before=$(finished)
rm -f "$run_dir/STOP"
trap 'signalled=yes warned=yes; mkdir -p "$run_dir"; touch "$run_dir/STOP"' USR1
trap 'signalled=yes cancelled=yes' TERM

echo "job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}, on $SLURM_JOB_NODELIST: processes per node: $processes," \
    "rendezvous at $head:$port"
echo "the run is in $run_dir; \`touch $run_dir/STOP\` stops it," \
    "\`sbatch --nodes=$SLURM_NNODES slurm/train.sh$(printf ' %q' "$@")\` continues it"

# Without --cpu-bind=none, some sites bind the task of a node, and everything that it starts, to one core.
srun --kill-on-bad-exit=1 --cpu-bind=none torchrun \
    --nnodes="$SLURM_NNODES" --nproc_per_node="$processes" --max-restarts="${MAX_RESTARTS:-3}" \
    --rdzv_backend=c10d --rdzv_endpoint="$head:$port" --rdzv_id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" \
    --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2 \
    -m mlm_dist.train "$@" &
# A signal ends `wait` early, so that bash can run the trap. Then wait again.
code=0
while :; do
    signalled='' status=0
    wait $! || status=$?
    [ "$status" -eq 127 ] || code=$status # 127: it had ended before the signal
    [ -n "$signalled" ] || break
done

if [ -e "$run_dir/DONE" ] && [ "$(finished)" != "$finished_before" ]; then
    exit 0 # whatever the exit code of torchrun
fi
[ -z "$cancelled" ] || exit "$code"
if ! scontrol show job "$SLURM_JOB_ID" | grep -q 'PreemptTime=[0-9]'; then
    # A user's STOP file or train.time_limit ended the run, not a signal: do not requeue.
    stopped=$(cat "$run_dir/STOPPED" 2>/dev/null || true)
    if [ -z "$warned" ] && [ -n "$stopped" ] && [[ $stopped != SIG* ]]; then exit "$code"; fi
    # Otherwise the job was warned, lost a node or failed. Requeue it only if it has saved a checkpoint: without
    # progress, it would end like this every time.
    if [ "$(newest)" = "$newest_before" ]; then
        echo "job $SLURM_JOB_ID made no progress since it started: it is not requeued" >&2
        exit 1
    fi
fi
echo "job $SLURM_JOB_ID is requeued"
trap - TERM USR1 # Slurm now ends this shell with TERM
scontrol requeue "$SLURM_JOB_ID"
