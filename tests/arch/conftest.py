"""Small shapes for the tests of `arch`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from arch.pangu_pi import PanguPiConfig, PanguPiForCausalLM

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "shortcut_reduction": 8,
}
PLAIN = {"series_terms": 1, "shortcut_count": 0}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Bit-exact comparisons should not depend on how many threads a reduction is split over."""
    torch.set_num_threads(1)


@pytest.fixture
def build() -> Callable[..., PanguPiForCausalLM]:
    """`build(seed=0, **fields)`: a small PanGu-pi; `shake=True` draws every parameter, none is at identity."""

    def build(seed: int = 0, shake: bool = False, **fields: Any) -> PanguPiForCausalLM:
        torch.manual_seed(seed)
        model = PanguPiForCausalLM(PanguPiConfig(**{**SHAPE, **fields}))
        if shake:
            generator = torch.Generator().manual_seed(seed + 1)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.normal_(0, 0.2, generator=generator)
        return model

    return build


@pytest.fixture
def ids_BS() -> torch.Tensor:
    """Two rows of twenty tokens."""
    return torch.randint(SHAPE["vocab_size"], (2, 20), generator=torch.Generator().manual_seed(5))
