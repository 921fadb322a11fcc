# What every launch script sets for its ranks. Sourced with INTERFACE set; a value that is set already stays.
export GLOO_SOCKET_IFNAME=$INTERFACE NCCL_SOCKET_IFNAME=$INTERFACE
# Segments of device memory that grow. With fixed ones, the buffers that ZeRO gathers and releases and the odd sizes of
# validation leave holes, and a run ends "out of memory" after hours with gigabytes reserved and unused. (cudaMallocAsync
# and NCCL's registration of user buffers do not go with it.) The older of two names, because torch 2.9 ignores the new
# one for this setting; some versions say that it is deprecated.
if [[ -z ${PYTORCH_ALLOC_CONF:-} ]]; then
    export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
fi
# NCCL's flight recorder: the last 2000 collectives of every rank, a few hundred bytes each. Where all ranks live and none
# moves, the trainer writes them to OUTPUT/collectives, and torch, when a collective times out, to the file named here;
# `torchfrtrace` compares the ranks' files and names the one that called another collective, or none.
export TORCH_FR_BUFFER_SIZE=${TORCH_FR_BUFFER_SIZE:-2000} TORCH_NCCL_DUMP_ON_TIMEOUT=${TORCH_NCCL_DUMP_ON_TIMEOUT:-1}
export TORCH_FR_DUMP_TEMP_FILE=${TORCH_FR_DUMP_TEMP_FILE:-/tmp/nccl_trace_rank_}
