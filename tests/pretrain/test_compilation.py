"""Compiled training is one graph per way of calling a block, without breaks, at every ZeRO stage."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from arch.pangu_pi import PanguPiForCausalLM
from arch.pangu_pi.configuration_pangu_pi import PanguPiConfig
from pretrain.command_line import parse
from pretrain.compilation import blocks_of, compile_blocks, eager
from pretrain.trainer import train
from tests.pretrain.conftest import TINY, rows
from tests.pretrain.task_cases import Materials, arguments

WAYS = 2
"""Of calling a block: training and validation."""


@pytest.fixture(params=["eager"])
def counters(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Any]:
    """What torch counts while it traces; code is not generated, which would take a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=request.param))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters
    torch._dynamo.reset()


def run(case: str, corpus: dict[str, Path], folder: Path, **settings: Any) -> Path:
    fixed = {
        "steps": 2,
        "checkpoint__every": 2,
        "validation__every": 2,
        "validation__samples": 2,
        "engine__compile": True,
    }
    train(parse(arguments(case, Materials(folder, corpus), folder / "run", **fixed | settings))[0])
    return folder / "run"


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_decoder_is_one_graph_for_training_and_one_for_validation(tmp_path, corpus, counters, stage, recomputed):
    engine = {"engine__zero_stage": stage, "engine__activation_checkpointing": recomputed}
    run("language", corpus, tmp_path, **engine)
    assert not counters["graph_break"]
    # With recomputation transformers lets embeddings ask for gradients, in validation too: a way of its own.
    assert WAYS <= counters["stats"]["unique_graphs"] <= WAYS + recomputed


@pytest.mark.parametrize("counters", ["aot_eager"], indirect=True)
def test_stage_3_keeps_whole_blocks_until_their_backward_pass_is_over(tmp_path, corpus, counters):
    """A traced backward pass hands its gradients over all at once, when eager ones would have been taken in."""
    losses = []
    for stage in (0, 3):
        output = run("digits", corpus, tmp_path / str(stage), engine__zero_stage=stage, engine__precision="fp32")
        losses.append([row["loss"] for row in rows(output, "train")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["sentences", "words", "captioned_words", "images"])
def test_every_task_is_compiled_without_breaks(tmp_path, corpus, counters, case):
    run(case, corpus, tmp_path, engine__zero_stage=3)
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"]


@pytest.mark.slow
def test_compiled_code_agrees_with_eager_and_all_layers_share_it():
    """With inductor's own code."""
    plain, compiled = (PanguPiForCausalLM(PanguPiConfig(**TINY)) for _ in range(2))
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # what starts at zero would hide a difference
    compiled.load_state_dict(plain.state_dict())
    compile_blocks(blocks_of(compiled))
    torch._dynamo.utils.counters.clear()
    ids_BS, outputs = torch.randint(0, TINY["vocab_size"], (2, 32)), []
    for model in (plain, compiled):
        outputs.append(model(input_ids=ids_BS, labels=ids_BS, use_cache=False))
        outputs[-1].loss.backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, "every layer was compiled on its own"
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, rtol=1e-4, atol=1e-4)
    for name, parameter in plain.named_parameters():
        grad = compiled.get_parameter(name).grad
        scale = parameter.grad.abs().max()
        torch.testing.assert_close(grad / scale, parameter.grad / scale, rtol=0, atol=1e-4, msg=name)


def test_blocks_are_what_a_model_repeats():
    model = PanguPiForCausalLM(PanguPiConfig(**TINY))
    assert blocks_of(model) == list(model.model.layers)
    repeated = [nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(2)]
    assert blocks_of(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Sequential(*repeated))) == repeated
    alone = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    assert blocks_of(alone) == [alone]


def test_what_looks_in_seldom_is_not_compiled(counters):
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    names = list(model.state_dict())
    compile_blocks(blocks_of(model))
    with eager(model):
        model(torch.ones(1, 2))
        assert not counters["stats"]
    model(torch.ones(1, 2))
    assert counters["stats"]["unique_graphs"] == 1 and list(model.state_dict()) == names
