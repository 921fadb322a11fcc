"""What saving, rolling back and resharding hold and read: no second engine, no second model on the device."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from arch.pangu_pi import PanguPiForCausalLM
from arch.pangu_pi.load_config import load_model_config
from pretrain import trainer
from pretrain.checkpoints import checkpoint
from pretrain.checkpoints.whole_state import WEIGHT, WholeState, write_whole_state
from pretrain.engine import Engine
from pretrain.trainer import Outcome
from tests.pretrain.conftest import TINY
from tests.pretrain.test_guards import final_weights, run, sample_of_step, toy


def tensors(value: Any) -> list[Tensor]:
    """The tensors in nested containers."""
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else []
    return [tensor for item in items for tensor in tensors(item)]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_rollback_frees_the_engine_before_it_builds_another(tmp_path: Path, monkeypatch, stage: int) -> None:
    made: list[list[weakref.ref[Tensor]]] = []
    alive: list[int] = []

    class Watched(Engine):
        def __init__(self, *arguments: Any) -> None:
            if made:
                alive.append(sum(reference() is not None for reference in made[-1]))
            super().__init__(*arguments)
            parameters = [*self.wrapped.module.parameters()]
            made.append([weakref.ref(tensor) for tensor in parameters])

        def close(self) -> None:
            states = tensors([*self.optimizer.state.values()])
            assert states  # there is optimizer state to be freed
            made[-1] += [weakref.ref(tensor) for tensor in states]
            super().close()

    monkeypatch.setattr(trainer, "Engine", Watched)
    poison = [sample_of_step(3), sample_of_step(4)]
    extra = ["--guards.max_consecutive_skips", "2", "--engine.zero_stage", str(stage)]
    assert run(toy(tmp_path, *extra, poison=poison)) is Outcome.FINISHED
    assert len(made) == 2 and len(made[0]) > 6
    assert alive == [0]


class Copies(TorchDispatchMode):
    """Counts the bytes that operators copy."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.clone, torch.ops.aten._to_copy, torch.ops.aten.copy_):
            self.bytes += result.nbytes
        return result


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_weights_are_handed_over_in_memory_of_their_own(tmp_path: Path, monkeypatch, stage: int) -> None:
    """So that nothing has to be copied on the device to write them."""
    handed: list[dict[str, Tensor]] = []

    class Watched(Engine):
        def state_dict(self) -> dict[str, Tensor] | None:
            whole = super().state_dict()
            assert whole is not None
            handed.append(whole)
            return whole

    monkeypatch.setattr(trainer, "Engine", Watched)
    run(toy(tmp_path, "--engine.zero_stage", str(stage)))
    assert handed[-1].keys() == final_weights(tmp_path).keys()
    for name, tensor in handed[-1].items():
        assert tensor.device.type == "cpu" and tensor.untyped_storage().nbytes() == tensor.nbytes, name


def test_tied_weights_stay_tied_and_are_written_without_a_copy(tmp_path: Path) -> None:
    model = PanguPiForCausalLM(load_model_config(TINY | {"tie_word_embeddings": True}))
    flat = nn.utils.parameters_to_vector(model.parameters()).detach()  # as ZeRO keeps them: views of one vector
    begin = 0
    for parameter in model.parameters():
        parameter.data = flat[begin : begin + parameter.numel()].view_as(parameter)
        begin += parameter.numel()
    engine = Engine.__new__(Engine)
    engine.stage = 1
    engine.world = type("World", (), {"is_main": True})()  # type: ignore[assignment]
    engine.wrapped = type("Wrapped", (), {"module": nn.ModuleDict({"model": model})})()
    whole = engine.state_dict()
    assert whole is not None and whole["lm_head.weight"] is whole["model.embed_tokens.weight"]
    with Copies() as copies:
        model.save_pretrained(tmp_path, state_dict=dict(whole))
    assert copies.bytes == 0
    written = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in written.items())


def test_every_rank_hashes_only_what_it_wrote(tmp_path: Path, monkeypatch) -> None:
    hashed: list[list[str]] = []
    original = checkpoint.file_hashes
    monkeypatch.setattr(
        checkpoint, "file_hashes", lambda folder, names: hashed.append(list(names)) or original(folder, names)
    )
    run(toy(tmp_path, "--engine.zero_stage", "1"))
    assert hashed and all(all(name.startswith("engine/") for name in names) for names in hashed)
    (newest, *_) = sorted((tmp_path / "checkpoints").glob("step_*"), reverse=True)
    assert {f"engine/{path.name}" for path in (newest / "engine").iterdir()} == set(hashed[-1])
    assert checkpoint.check_files(newest) is None


def test_the_ranks_check_a_checkpoint_together(tmp_path: Path) -> None:
    run(toy(tmp_path))
    newest = tmp_path / "checkpoints" / "step_00000007"
    (newest / "model.safetensors").write_bytes(b"junk")
    found = [checkpoint.check_files(newest, rank, 3) for rank in range(3)]
    assert sorted(problem or "" for problem in found) == ["", "", "model.safetensors does not match its checksum"]


def test_a_piece_is_read_without_the_rest_of_its_tensor(tmp_path: Path) -> None:
    run(toy(tmp_path))
    saved = checkpoint.Saved.read(tmp_path / "checkpoints" / "step_00000007")
    trained = [*final_weights(tmp_path)]
    write_whole_state(saved.path / "engine", 1, 1, trained, tmp_path / "whole")
    weights = final_weights(tmp_path)
    with WholeState(tmp_path / "whole") as state:
        for name in trained:
            shape = weights[name].shape
            assert {WEIGHT, "exp_avg", "exp_avg_sq", "step"} == state.keys(name, shape)
            flat = weights[name].flatten()
            for start, size in ((0, flat.numel()), (1, 1), (flat.numel() // 2, flat.numel() // 3), (flat.numel(), 0)):
                part = state.part(WEIGHT, name, start, size)
                assert torch.equal(part, flat[start : start + size]), (name, start, size)
            assert state.part("step", name, 1, 1).ndim == 0
