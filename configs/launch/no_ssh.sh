#!/usr/bin/env bash
# Trains without ssh: start it on every node, each with its own number. configs/launch/no_ssh.sh NODE_RANK [--field value ...]
set -euo pipefail

# 1. Where: the nodes in a file (first line: number 0), the first one's address, and the interface that joins them.
HOSTFILE=configs/launch/hosts MASTER=node-a PORT=29500
INTERFACE=eth0
# 2. What: a configuration; its output lies on a folder that all nodes share.
CONFIG=configs/pangu_pi/runs/quickstart.yaml

NODE_RANK=${1:?the number of this node, from 0}
shift
source configs/launch/environment.sh
# To stop it, end this process on one node with SIGTERM: all ranks save and leave. (Ctrl-C too, but then DeepSpeed kills
# what has not saved after 30 s.)
exec deepspeed --hostfile "$HOSTFILE" --no_ssh --node_rank "$NODE_RANK" --master_addr "$MASTER" --master_port "$PORT" \
    pretrain/train.py --config "$CONFIG" "$@"
