#!/usr/bin/env bash
# Trains under Slurm, one torchrun per node: sbatch configs/launch/slurm.sh [--field value ...]
# 1. Where: nodes, their accelerators, the time, and below the interface that joins them.
#SBATCH --nodes=2
#SBATCH --gres=gpu:8
#SBATCH --time=24:00:00
#SBATCH --ntasks-per-node=1
#SBATCH --job-name=tinypi
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail
INTERFACE=eth0
# 2. What: a configuration; its output lies on a folder that all nodes share.
CONFIG=configs/quickstart.yaml

RANKS=${SLURM_GPUS_ON_NODE:-1}
MASTER=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
PORT=$((20000 + SLURM_JOB_ID % 20000))
export GLOO_SOCKET_IFNAME=$INTERFACE NCCL_SOCKET_IFNAME=$INTERFACE
# --kill-on-bad-exit: once a node has ended with an error, the others need not wait to notice.
exec srun --kill-on-bad-exit=1 bash -c '
    exec torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$1" --node-rank "$SLURM_NODEID" --master-addr "$2" \
        --master-port "$3" pretrain/train.py --config "$4" "${@:5}"
' torchrun "$RANKS" "$MASTER" "$PORT" "$CONFIG" "$@"
