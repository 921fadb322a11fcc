#!/usr/bin/env bash
# Trains on all nodes of a hostfile, over ssh. Start it once, on the first node: configs/launch/ssh.sh [--field value ...]
set -euo pipefail

# 1. Where: the nodes, and the interface (the same name on each) that joins them.
HOSTFILE=configs/launch/hosts
INTERFACE=eth0
# 2. What: a configuration; its output lies on a folder that all nodes share.
CONFIG=configs/pangu_pi/runs/quickstart.yaml

export PDSH_SSH_ARGS_APPEND="-o ServerAliveInterval=15 -o ServerAliveCountMax=4"  # ssh to a dead node ends, too
# Exported variables do not travel over ssh; the launcher sends what stands in this file (`.deepspeed_env`, if not named).
export DS_ENV_FILE=${TMPDIR:-/tmp}/deepspeed_env.$(id -un)
source configs/launch/environment.sh
env | grep -E '^(GLOO|NCCL|TORCH|PYTORCH)_' > "$DS_ENV_FILE"
# SIGTERM or Ctrl-C here reaches all ranks, which save and leave; DeepSpeed kills what has not after 30 s. A save that takes
# longer needs SIGTERM to one rank's own process instead: the others stop with it, and nothing is killed.
exec deepspeed --hostfile "$HOSTFILE" pretrain/train.py --config "$CONFIG" "$@"
