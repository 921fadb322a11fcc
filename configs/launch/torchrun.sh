#!/usr/bin/env bash
# Trains under torchrun: start it on every node, each with its own number. configs/launch/torchrun.sh NODE_RANK [--field value ...]
set -euo pipefail

# 1. Where: how many nodes with how many ranks each, the first one's address, and the interface that joins them.
NODES=2 RANKS=8 MASTER=node-a PORT=29500
INTERFACE=eth0
# 2. What: a configuration; its output lies on a folder that all nodes share.
CONFIG=configs/pangu_pi/runs/quickstart.yaml

NODE_RANK=${1:?the number of this node, from 0}
shift
source configs/launch/environment.sh
# How long a step and its checkpoint may take once torchrun was told to stop, where torch knows this (2.14 does); else 30 s.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}
exec torchrun --nnodes "$NODES" --nproc-per-node "$RANKS" --node-rank "$NODE_RANK" --master-addr "$MASTER" \
    --master-port "$PORT" pretrain/train.py --config "$CONFIG" "$@"
