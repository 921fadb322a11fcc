#!/usr/bin/env bash
# Trains on all nodes of a hostfile, over ssh. Start it once, on the first node: configs/launch/ssh.sh [--field value ...]
set -euo pipefail

# 1. Where: the nodes, and the interface (the same name on each) that joins them.
HOSTFILE=configs/launch/hosts
INTERFACE=eth0
# 2. What: a configuration; its output lies on a folder that all nodes share.
CONFIG=configs/quickstart.yaml

export PDSH_SSH_ARGS_APPEND="-o ServerAliveInterval=15 -o ServerAliveCountMax=4"  # ssh to a dead node ends, too
# Exported variables do not travel over ssh; the launcher sends what stands in this file (`.deepspeed_env`, if not named).
export DS_ENV_FILE=${TMPDIR:-/tmp}/deepspeed_env.$(id -un)
printf 'GLOO_SOCKET_IFNAME=%s\nNCCL_SOCKET_IFNAME=%s\n' "$INTERFACE" "$INTERFACE" > "$DS_ENV_FILE"
exec deepspeed --hostfile "$HOSTFILE" pretrain/train.py --config "$CONFIG" "$@"
