"""A checkpoint's engine state by parameter, whole: for a run that goes on with other ranks or at another ZeRO stage.

    step_00000100/engine/*.pt          this stage's partitions, one file per rank
      --> whole_00000100_.../00001.safetensors ...   {"exp_avg/layers.0.weight": the whole tensor, ...}
          whole_00000100_.../meta.json                   SHA-256 of every file

    stage 0     optimizer state by parameter, in the order of the groups; in bf16 the masters beside it
    stage 1, 2  each group is one flat vector, cut into as many parts as there are ranks; a parameter may cross a cut
    stage 3     every parameter is cut by itself, its last part is padded; in a sub-group one follows the other

Partitions are memory-mapped and put together one parameter after the other, so that converting holds one gigabyte, not
the model. They are read as `engine_files.py` says: nothing but tensors and a few classes is unpickled.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from common.atomic_files import fsync, publish
from pretrain.checkpoints.checksums import seal
from pretrain.checkpoints.engine_files import read_engine_file
from pretrain.errors import CheckpointError
from pretrain.optimizers.master_weights import MASTERS
from pretrain.optimizers.muon import MOMENTUM
from pretrain.optimizers.pieces import PREFIX

SHARD_BYTES = 2**30
WEIGHT, BUFFER = "fp32", "buffer"

MODEL_STATES, PARTITION = "mp_rank_00_model_states.pt", "zero_pp_rank_"
"""How the name of the engine's model file ends, and how that of a rank's file begins."""

State = dict[str, Tensor]
"""Of one parameter: `fp32`, the master weight; the optimizer's tensors of the same shape; its scalars."""


def write_whole_state(engine_files: Path, stage: int, ranks: int, names: Sequence[str], target: Path) -> None:
    """Puts the partitions of a checkpoint together; `target` appears when it is complete.

    Args:
        engine_files: the `engine` folder of a checkpoint.
        stage: ZeRO stage that wrote it.
        ranks: number of ranks that wrote it.
        names: trained parameters in the order of the optimizer's groups.
        target: folder to write.

    Raises:
        CheckpointError: a file is missing, or does not hold what this stage of DeepSpeed writes.
    """
    temporary = target.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    held: State = {}
    shards = 0

    def flush() -> None:
        nonlocal shards
        shards += 1
        save_file(held, temporary / f"{shards:05d}.safetensors")
        held.clear()

    what = f"{engine_files.parent.name}: from ZeRO stage {stage} on {ranks} rank{'s' if ranks > 1 else ''}"
    try:
        # Listed once: there may be two for each of thousands of ranks.
        files = sorted(path.name for path in engine_files.iterdir())
        states = next((name for name in files if name.endswith(MODEL_STATES)), MODEL_STATES)
        content = _load(engine_files / states)
        parameters = _read_partitions(engine_files, files, content, stage, ranks, names)
        for name, state in tqdm(parameters, what, total=len(names), unit="tensor"):
            held |= {
                f"{key}/{name}": tensor.clone(memory_format=torch.contiguous_format) for key, tensor in state.items()
            }
            if sum(tensor.nbytes for tensor in held.values()) >= SHARD_BYTES:
                flush()
        for name in content["buffer_names"]:
            held[f"{BUFFER}/{name.removeprefix(PREFIX)}"] = content["module"][name].clone()
    except (KeyError, IndexError) as error:
        raise CheckpointError(
            f"{engine_files}: not what ZeRO stage {stage} writes on {ranks} ranks: {type(error).__name__}: {error}"
        ) from error
    flush()
    seal(temporary)
    for path in (*temporary.iterdir(), temporary):
        fsync(path)
    publish(temporary, target)


class WholeState:
    """Reads what `write_whole_state` wrote, tensor by tensor; use it in a `with`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = ExitStack()
        self._where: dict[str, Any] = {}
        self._kinds: set[str] = set()

    def __enter__(self) -> WholeState:
        for path in sorted(self.folder.glob("*.safetensors")):
            file = self._files.enter_context(safe_open(path, "pt"))
            self._where |= dict.fromkeys(file.keys(), file)
        self._kinds = {key.partition("/")[0] for key in self._where}
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def keys(self, name: str, shape: torch.Size) -> set[str]:
        """What is kept of one parameter: WEIGHT and the optimizer's own names.

        Raises:
            CheckpointError: there is nothing, or its shape is another.
        """
        found = {key for key in self._kinds if f"{key}/{name}" in self._where and key != BUFFER}
        there = tuple(self._slice(WEIGHT, name).get_shape()) if WEIGHT in found else "nothing"
        if there != tuple(shape):
            raise CheckpointError(f"{self.folder}: {name} is {tuple(shape)} in the model and {there} there")
        return found

    def part(self, key: str, name: str, start: int, size: int) -> Tensor:
        """The elements [start, start + size) of a flattened tensor; a number (no dimensions) is given whole.

        Only the rows that hold them are read: a rank that holds a thousandth of a model reads no more of it.
        """
        tensor = self._slice(key, name)
        shape = tensor.get_shape()
        if not shape:
            return self._where[f"{key}/{name}"].get_tensor(f"{key}/{name}")
        width = math.prod(shape[1:])
        first, last = start // width, -(-(start + size) // width)
        return tensor[first:last].flatten()[start - first * width :][:size]

    def _slice(self, key: str, name: str) -> Any:
        return self._where[f"{key}/{name}"].get_slice(f"{key}/{name}")

    def buffers(self) -> dict[str, Tensor]:
        """The model's persistent buffers, by name."""
        names = [key.partition("/")[2] for key in self._where if key.startswith(f"{BUFFER}/")]
        return {name: self._where[f"{BUFFER}/{name}"].get_tensor(f"{BUFFER}/{name}") for name in names}


def _load(path: Path) -> dict[str, Any]:
    """One of the engine's files, memory-mapped."""
    if not path.is_file():
        raise CheckpointError(f"{path.parent}: there is no *{path.name}")
    return read_engine_file(path)


def _read_partitions(
    engine_files: Path, files: Sequence[str], content: Mapping[str, Any], stage: int, ranks: int, names: Sequence[str]
) -> Iterator[tuple[str, State]]:
    if stage == 0:
        states, masters = content["optimizer"]["state"], content["optimizer"].get(MASTERS)
        for number, name in enumerate(names):
            weight = content["module"][PREFIX + name].float() if masters is None else masters[number]
            yield name, {WEIGHT: weight, **_tensors(states.get(number, {}))}
        return
    # In bf16 there is a prefix before the part that names the rank.
    by_rank = {name[name.index(PARTITION) :]: name for name in files if PARTITION in name}
    wanted = [f"{PARTITION}{rank}_mp_rank_00_optim_states.pt" for rank in range(ranks)]
    parts = [_load(engine_files / by_rank.get(name, name))["optimizer_state_dict"] for name in wanted]
    whole_momenta = _keeps_whole_momenta(content, parts[0])
    for group, shapes in enumerate(content["param_shapes"]):
        if stage == 3:
            by_name = _read_cut_parameters(parts, group, shapes)
        else:
            by_name = _read_cut_vector(parts, group, shapes, whole_momenta)
        for name, pieces in by_name.items():
            yield name.removeprefix(PREFIX), _joined(pieces, torch.Size(shapes[name]))


def _keeps_whole_momenta(content: Mapping[str, Any], part: Mapping[str, Any]) -> bool:
    """Whether the momentum of every matrix is whole on each rank that has a piece of it, at stages 1 and 2.

    DeepSpeed's Muon, which earlier checkpoints are of, kept it so on the device, one matrix after the other; on the
    host, and in the optimizer that DeepSpeed takes at stage 1 for gradients in fp32, which names no stage in its files,
    momenta were cut like the weights, as ours are. Its groups have an `ns_method`.

    Args:
        content: the engine's model file.
        part: the optimizer's state of one rank.
    """
    offload = content["ds_config"].get("zero_optimization", {}).get("offload_optimizer") or {}
    groups = part.get("base_optimizer_state", {}).get("param_groups", [])
    of_deepspeed = any("ns_method" in group for group in groups)
    return of_deepspeed and offload.get("device", "none") == "none" and "zero_stage" in part


def _read_cut_vector(
    parts: list[dict[str, Any]], group: int, shapes: Mapping[str, Any], whole_momenta: bool
) -> dict[str, list[State]]:
    """Stages 1 and 2: each parameter's pieces, by rank."""
    pieces: dict[str, list[State]] = {name: [] for name in shapes}
    for part in parts:
        flat = part["single_partition_of_fp32_groups"][group]
        state = {WEIGHT: flat, **_tensors(part["base_optimizer_state"]["state"].get(group, {}))}
        places = part["param_slice_mappings"][group]
        sizes = {name: torch.Size(shapes[name]).numel() for name in places}
        matrices = [key for key in state if key == MOMENTUM and whole_momenta]
        begin = 0
        for name, place in places.items():
            cuts = dict.fromkeys(state, slice(place.start, place.start + place.numel))
            cuts |= dict.fromkeys(matrices, slice(begin, begin + sizes[name]))
            pieces[name].append({key: _cut(tensor, cuts[key]) for key, tensor in state.items()})
            begin += sizes[name]
    return pieces


def _read_cut_parameters(parts: list[dict[str, Any]], group: int, shapes: Mapping[str, Any]) -> dict[str, list[State]]:
    """Stage 3: each parameter's pieces, by rank; the last ones may be longer than the parameter."""
    pieces: dict[str, list[State]] = {name: [] for name in shapes}
    for part in parts:
        states = part["optimizer_state_dict"]["state"].get(group, {})
        state = {WEIGHT: part["fp32_flat_groups"][group], **_tensors(states)}
        begin = 0
        for name, shape in shapes.items():
            size = -(-torch.Size(shape).numel() // len(parts))
            pieces[name].append({key: _cut(tensor, slice(begin, begin + size)) for key, tensor in state.items()})
            begin += size
    return pieces


def _tensors(state: Mapping[str, Any]) -> State:
    return {key: value if isinstance(value, Tensor) else torch.tensor(value) for key, value in state.items()}


def _cut(tensor: Tensor, piece: slice) -> Tensor:
    return tensor if tensor.ndim == 0 else tensor[piece]


def _joined(pieces: list[State], shape: torch.Size) -> State:
    """The whole of a parameter's state from its pieces."""
    whole = {}
    for key, first in pieces[0].items():
        if first.ndim == 0 or first.numel() == shape.numel():
            whole[key] = first if first.ndim == 0 else first.reshape(shape)
        else:
            whole[key] = torch.cat([piece[key] for piece in pieces])[: shape.numel()].reshape(shape)
    return whole
