"""Memory of one rank under ZeRO, moment by moment: what DeepSpeed holds in backward, while reducing, in the step.

Sources: ZeRO (arXiv 1910.02054, section 3), DeepSpeed's memory estimators (`estimate_zero*_model_states_mem_needs`),
and, where these are silent, the code of DeepSpeed 0.19 (`runtime/zero/stage_1_and_2.py`, `stage3.py`) with the
configuration that `engine.py` derives.

Symbols: P trained parameters, n ranks, w bytes of a weight (2 in bf16, 4 in fp32), v of a summed gradient (likewise),
s = 8 bytes of moments for one parameter (AdamW's two; Muon's one, and as much again for what it orthogonalises at a
time), b elements of the reduce bucket, g of the largest parameter group, A and A+G the peaks of activations without and
with gradients, K micro-batches of a step.

    always        weights     wP at stages 0 to 2, wP/n at stage 3; frozen ones likewise
                  optimizer   sP at stage 0 in fp32, (4 + s)P in bf16, (4 + s)P/n at the others; stage 3 makes that
                              copy in fp32 too, because it compares a torch.device with a device's name
    v = w:
    stage 0       backward    A+G, or A + wP from the second micro-batch on
                  reduce      gradients wP and flat copies of at most 5e8 of them
    stage 1       backward    as stage 0, and the bucket wb
                  reduce      the bucket, its flat copy wb (n > 1), the own partition wP/n, gradients not yet reduced
    stage 2       backward    A and the bucket: each gradient moves into it; partitions wP/n where it overflows or K > 1
                  reduce      the bucket, its flat copy, partitions wP/n (two if K > 1)
    stage 3       backward    A and the bucket, partition wP/n, gathered weights: those used again within
                              max_reuse_distance (half of it lies before the turn of the pass), prefetched and
                              small persistent ones; nothing is gathered for one rank
                  reduce      the bucket, its flat copy, also for n = 1, and gloo's copy of that; where the bucket
                              overflows, amid backward
    stages 1-3    step        the partition wP/n, a flat copy wg/n, and in bf16 its fp32 version 4g/n
    bf16 weights, v = 4: each bf16 gradient is added to its sum at once, and freed
    stage 0, 1    backward    A and the sums vP, which are always there
                  reduce      the sums and flat copies of at most 5e8 of them; a larger group is reduced where it lies
                  step        the sums
                  at stage 1 with offloading the sums move into a bucket vb instead, as above
    stage 2       reduce      the bucket wb, its flat copy, that copy in fp32 vb, the partition vP/n, summed in place
                  step        the partition
    stage 3       as above with a partition vP/n and the bucket's copies in fp32, made from one more

With offloading, optimizer states, master copy and its gradient live on the host. Memory of a CPU counts when it is
written, so a bucket there grows as it is filled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from pretrain.planning.activation_memory import ActivationMemory

MASTER_BYTES = 4
MOMENT_BYTES = 8
STAGE_0_BUCKET = 500_000_000
"""Elements that DeepSpeed reduces at once without ZeRO."""
STAGE_3_DEFAULTS = {
    "stage3_max_reuse_distance": 1_000_000_000,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_param_persistence_threshold": 100_000,
    "sub_group_size": 1_000_000_000,
}
"""DeepSpeed's own, in elements."""


@dataclass(frozen=True)
class States:
    """What is known of a model's parameters and their optimizer, in elements and bytes."""

    parameters: int
    """P, trained ones."""
    frozen: int
    """Parameters and buffers that are not trained."""
    largest_group: int
    """g, of the groups that the optimizer updates one after the other."""
    small: int
    """Trained parameters in tensors that stage 3 keeps whole."""


@dataclass(frozen=True)
class Setting:
    """How the states are held."""

    stage: int
    """ZeRO stage."""
    ranks: int
    """n."""
    weight_bytes: int
    """w."""
    gradient_bytes: int
    """v."""
    accumulation: int
    """K."""
    zero: Mapping[str, Any]
    """DeepSpeed's zero_optimization, as `engine.deepspeed_config` derives it."""
    offload_optimizer: bool = False
    """Optimizer states live on the host."""
    offload_parameters: bool = False
    """Partitions of weights live on the host."""
    counts_when_written: bool = False
    """Memory counts when it is written and not when it is asked for: a CPU's."""

    @property
    def widened(self) -> bool:
        """Whether bf16 gradients are summed in fp32."""
        return self.gradient_bytes > self.weight_bytes


@dataclass(frozen=True)
class Moment:
    """Bytes of one rank at one moment of a step, by part."""

    name: str
    """backward, reduce or step."""
    weights: float
    """Weights that forward and backward use, gathered ones included."""
    gradients: float
    """Gradients of parameters."""
    optimizer: float
    """fp32 master copy and moments."""
    buffers: float
    """Buckets and flat copies."""
    activations: float
    """What forward and backward keep and use."""

    @property
    def total(self) -> float:
        """All parts."""
        return sum(getattr(self, field.name) for field in fields(self) if field.name != "name")


def peak_moment(setting: Setting, states: States, activations: ActivationMemory) -> Moment:
    """The moment of a step at which a rank holds the most."""
    moments = _without_zero if setting.stage == 0 else _stage_3 if setting.stage == 3 else _stages_1_2
    return max(moments(setting, states, activations), key=lambda moment: moment.total)


def host_bytes(setting: Setting, states: States) -> float:
    """Bytes of host memory that offloading takes for one rank: master, its gradient, moments, a copy to send back."""
    w, shard = setting.weight_bytes, states.parameters / setting.ranks
    optimizer = (2 * MASTER_BYTES + MOMENT_BYTES + w) * shard
    return optimizer * setting.offload_optimizer + w * shard * setting.offload_parameters


def _backward(setting: Setting, states: States, activations: ActivationMemory) -> tuple[float, float]:
    """Gradients of parameters, and everything else, while every parameter keeps its gradient."""
    if setting.accumulation > 1 or setting.widened:
        return setting.gradient_bytes * states.parameters, activations.peak
    gradients = activations.gradients_at_peak
    return gradients, activations.peak_with_gradients - gradients


def _without_zero(setting: Setting, states: States, activations: ActivationMemory) -> list[Moment]:
    w, count = setting.weight_bytes, states.parameters
    weights = w * (count + states.frozen)
    gradients, rest = _backward(setting, states, activations)
    optimizer = (MOMENT_BYTES + MASTER_BYTES * setting.widened) * count
    return [
        Moment("backward", weights, gradients, optimizer, 0, rest),
        _whole_reduction(setting, states, weights, optimizer),
    ]


def _whole_reduction(setting: Setting, states: States, weights: float, optimizer: float) -> Moment:
    """Gradients that every rank has whole are averaged, 5e8 at a time, from a flat copy."""
    v, count = setting.gradient_bytes, states.parameters
    copied = count if count <= STAGE_0_BUCKET or not setting.widened else count - states.largest_group
    return Moment("reduce", weights, v * count, optimizer, v * min(copied, STAGE_0_BUCKET), 0)


def _stages_1_2(setting: Setting, states: States, activations: ActivationMemory) -> list[Moment]:
    w, v, n, count = setting.weight_bytes, setting.gradient_bytes, setting.ranks, states.parameters
    weights, shard = w * (count + states.frozen), v * count / n
    in_bucket = v if setting.stage == 1 else w
    bucket = in_bucket * int(setting.zero["reduce_bucket_size"])
    doubled = bucket * (2 if setting.zero.get("overlap_comm") else 1)
    filled = min(bucket, in_bucket * count)
    copy = filled * (n > 1) + (filled * v / w if setting.widened and setting.stage == 2 else 0)
    overflows = in_bucket * count > bucket
    optimizer = 0 if setting.offload_optimizer else (MASTER_BYTES + MOMENT_BYTES) * count / n
    if setting.offload_optimizer:
        shard = 0
    elif setting.stage == 1 and setting.widened:
        sums = v * count
        return [
            Moment("backward", weights, sums, optimizer, 0, activations.peak),
            _whole_reduction(setting, states, weights, optimizer),
            Moment("step", weights, sums, optimizer, 0, 0),
        ]
    step = _step(setting, states, weights, shard, optimizer)
    if setting.stage == 1:
        gradients, rest = _backward(setting, states, activations)
        waiting = max(0.0, v * count - bucket)
        empty_bucket = 0 if setting.counts_when_written else doubled
        return [
            Moment("backward", weights, gradients, optimizer, empty_bucket, rest),
            Moment("reduce", weights, v * count, optimizer, empty_bucket, 0),
            Moment("reduce", weights, waiting + shard, optimizer, min(doubled, v * count) + copy, 0),
            step,
        ]
    earlier = shard * (setting.accumulation > 1) * (not setting.widened)
    reduce = Moment("reduce", weights, earlier + shard, optimizer, doubled + copy, 0)
    if overflows:
        return [Moment("backward", weights, earlier + shard, optimizer, doubled + copy, activations.peak), step]
    if setting.counts_when_written:
        gradients = activations.gradients_at_peak
        rest = activations.peak_with_gradients - gradients
        return [Moment("backward", weights, earlier, optimizer, gradients, rest), reduce, step]
    return [Moment("backward", weights, earlier, optimizer, doubled, activations.peak), reduce, step]


def _stage_3(setting: Setting, states: States, activations: ActivationMemory) -> list[Moment]:
    w, v, n, count = setting.weight_bytes, setting.gradient_bytes, setting.ranks, states.parameters
    limits = {name: int(setting.zero.get(name, default)) for name, default in STAGE_3_DEFAULTS.items()}
    reused = min(limits["stage3_max_reuse_distance"] // 2, limits["stage3_max_live_parameters"])
    gathered = min(count, reused + limits["stage3_prefetch_bucket_size"] + states.small) if n > 1 else 0
    shard = v * count / n
    own = 0 if setting.offload_parameters else w * (count + states.frozen) / n
    optimizer = 0 if setting.offload_optimizer else (MASTER_BYTES + MOMENT_BYTES) * count / n
    gradients = 0 if setting.offload_optimizer else shard
    bucket = w * int(setting.zero["reduce_bucket_size"])
    filled = min(bucket, w * count)
    copies = filled * v / w * ((2 if setting.counts_when_written else 1) + setting.widened)
    kept = filled if setting.counts_when_written else bucket  # never given back
    late = own + w * min(gathered, states.small)
    step = _step(setting, states, late, gradients, optimizer)
    held = replace(step, buffers=step.buffers + kept)
    if w * count > bucket:
        return [Moment("backward", own + w * gathered, gradients, optimizer, bucket + copies, activations.peak), held]
    backward = Moment("backward", own + w * gathered, gradients, optimizer, kept, activations.peak)
    return [backward, Moment("reduce", late, gradients, optimizer, kept + copies, 0), held]


def _step(setting: Setting, states: States, weights: float, shard: float, optimizer: float) -> Moment:
    """The update of the largest group, from a flat copy of its gradients in fp32."""
    v, largest = setting.gradient_bytes, states.largest_group / setting.ranks
    if setting.stage == 3:
        largest = min(largest, int(setting.zero.get("sub_group_size", STAGE_3_DEFAULTS["sub_group_size"])))
    flat = largest * (v + (0 if v == MASTER_BYTES else MASTER_BYTES))
    if setting.offload_optimizer or (setting.stage == 2 and setting.widened):
        flat = 0
    return Moment("step", weights, shard, optimizer, flat, 0)
