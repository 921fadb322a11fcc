#!/usr/bin/env bash
# Trains under Slurm, one task per rank, and goes on in the queue until done: sbatch configs/launch/slurm.sh [--field value ...]
# 1. Where: nodes, accelerators, a task for each of them, the time, and below the interface that joins the nodes.
#SBATCH --nodes=2
#SBATCH --gres=gpu:8
#SBATCH --ntasks-per-node=8
#SBATCH --time=24:00:00
# Cores of each rank: itself and loader.workers. Unasked, Slurm gives it one, and the accelerator waits for data.
#SBATCH --cpus-per-task=8
# All memory of the nodes: unasked, it is the site's default per core, and checkpoints or an offloaded optimizer exceed it.
#SBATCH --mem=0
# This shell is told 300 s ahead of the end of time (GRACE, below), tells the ranks, and puts the job back into the queue.
#SBATCH --signal=B:USR1@300
# After a node's failure or a preemption, Slurm does that by itself; either way the log goes on in the same file.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --job-name=tinypi
set -euo pipefail
INTERFACE=eth0 GRACE=300
# 2. What: a configuration; its output lies on a folder that all nodes share.
CONFIG=configs/pangu_pi/runs/quickstart.yaml

source configs/launch/environment.sh
read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) WORLD_SIZE=$SLURM_NTASKS
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}} TINYPI_GRACE_SECONDS=$GRACE

time_is_up=
trap 'time_is_up=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1 # to the steps of the job, not to this shell
trap : TERM                                                       # of `scancel`: the ranks have it too, and are awaited
# The ranks are srun's own tasks: a launcher between them would end with an error when it is told to stop, and too soon.
# srun does not take the number of cores from the job. One rank's error ends the others, which need not wait to notice.
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
    exec python pretrain/train.py "$@"
' rank --config "$CONFIG" "$@" &
code=0
while wait $! || code=$?; kill -0 $! 2> /dev/null; do code=0; done # a signal ends `wait`, not srun
if [[ -n $time_is_up ]]; then
    echo "slurm.sh: the time was up (exit code $code); job $SLURM_JOB_ID goes back into the queue"
    exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
