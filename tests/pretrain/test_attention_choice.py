"""`task.attention: auto` on every kind of device, and no S x S tensor in what it chooses for CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from arch.pangu_pi import PanguPiConfig, PanguPiForCausalLM
from arch.pangu_pi.packed_attention import PACKED_CPU, PACKED_FLEX, TORCH_VARLEN
from data_pipeline.document_bounds import document_bounds
from pretrain import attention
from pretrain.attention import built_with, choose, decide, last_hidden

SHAPE = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
CUDA, LENGTH = torch.device("cuda"), 256
HAVE_VARLEN = attention.has_torch_varlen()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function (capability, flash-attn's version) that says what this machine pretends to have."""

    def pretend(capability: tuple[int, int] = (8, 0), flash: int = 0, varlen: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: flash >= 2)
        monkeypatch.setattr(attention, "is_flash_attn_3_available", lambda: flash >= 3)
        monkeypatch.setattr(attention, "has_torch_varlen", lambda: varlen)

    return pretend


@pytest.mark.parametrize(
    "machine, dtype, fields, name, reason",
    [
        ({}, torch.bfloat16, {}, TORCH_VARLEN, "no flash-attn is installed"),
        ({"flash": 2}, torch.bfloat16, {}, "flash_attention_2", "flash-attn is installed"),
        ({"flash": 3}, torch.bfloat16, {}, "flash_attention_2", "flash-attn is installed"),
        ({"flash": 3, "capability": (9, 0)}, torch.float16, {}, "flash_attention_3", "flash-attn 3 is installed"),
        ({"varlen": False}, torch.bfloat16, {}, PACKED_FLEX, "variable length is not in torch"),
        ({"flash": 2}, torch.float32, {}, PACKED_FLEX, "variable length is not in float32"),
        ({"flash": 2, "capability": (7, 5)}, torch.float16, {}, PACKED_FLEX, "not on compute capability 7.5"),
        ({"flash": 2}, torch.bfloat16, {"head_dim": 320}, PACKED_FLEX, "not for heads of 320"),
        ({"flash": 2}, torch.bfloat16, {"attention_dropout": 0.1}, "flash_attention_2", "flash-attn is installed"),
        ({}, torch.bfloat16, {"attention_dropout": 0.1}, "sdpa", "a dense mask, because flex attention has no"),
        ({}, torch.float32, {"head_dim": 8}, "sdpa", "a dense mask, because flex attention has no heads of 8"),
    ],
)
def test_packed_rows_on_cuda(gpu, machine, dtype, fields, name, reason):
    gpu(**machine)
    choice = choose(PanguPiConfig(**SHAPE | fields), CUDA, dtype, packed=True)
    assert choice.name == name and choice.reason.startswith("auto: ") and reason in choice.reason


def test_rows_of_one_document_and_other_devices(gpu):
    gpu(flash=2)
    config, dropping = PanguPiConfig(**SHAPE), PanguPiConfig(**SHAPE, attention_dropout=0.1)
    assert choose(config, CUDA, torch.bfloat16, packed=False).name == "sdpa"
    for packed, name in ((True, PACKED_CPU), (False, "sdpa")):
        assert choose(config, torch.device("cpu"), torch.float32, packed).name == name
    for shape, device, reason in ((dropping, "cpu", "no attention_dropout"), (config, "xpu", "on xpu a dense mask")):
        choice = choose(shape, torch.device(device), torch.float32, packed=True)
        assert choice.name == "sdpa" and reason in choice.reason


def test_what_is_asked_for_is_not_changed():
    config = PanguPiConfig(**SHAPE)
    config._attn_implementation = built_with("eager")
    model = PanguPiForCausalLM(config)
    assert decide(model, "eager", CUDA, packed=False) == ("eager", "asked for: eager")
    assert "S x S numbers" in decide(model, "eager", CUDA, packed=True).reason
    assert config._attn_implementation == "eager"


class Watch(TorchDispatchMode):
    """Writes down tensors of S x S, and operators that would wait for the device."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.square: set[str] = set()
        self.waits: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.waits.add(str(func))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.shape[-2:] == (LENGTH, LENGTH):
                self.square.add(f"{func} {tuple(tensor.shape)}")
        return result


@contextmanager
def pretended(model: PanguPiForCausalLM, rows: list[list[int]]) -> Iterator[dict[str, torch.Tensor]]:
    """Moves a model to a pretended device, without numbers, and gives a batch of rows of these documents there."""
    positions_BS = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in rows])
    host = {"input_ids": positions_BS, "position_ids": positions_BS, **document_bounds(positions_BS)}
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                        tensors[name] = torch.nn.Parameter(fake) if tensors is module._parameters else fake
        yield {name: torch.empty(t.shape, dtype=t.dtype, device="cuda") for name, t in host.items()}


@pytest.mark.parametrize(
    "asked, dtype, name",
    [
        pytest.param(
            "auto", torch.bfloat16, TORCH_VARLEN,
            marks=pytest.mark.skipif(not HAVE_VARLEN, reason="this torch has no attention of variable length"),
        ),
        ("auto", torch.float32, PACKED_FLEX),
        ("flex_attention", torch.bfloat16, "flex_attention"),
    ],
)  # fmt: skip
def test_nothing_of_s_by_s_is_made_and_nothing_waited_for(asked, dtype, name):
    """Counted on tensors without numbers: forward passes of packed rows, and of rows of one document."""
    config = PanguPiConfig(**SHAPE)
    config._attn_implementation = built_with(asked)
    model = PanguPiForCausalLM(config).to(dtype)
    for packed, rows in ((True, [[100, 156], [1, 255]]), (False, [[LENGTH], [LENGTH]])):
        if not packed:
            config._attn_implementation = built_with("auto")
        with (
            pretended(model, rows) as batch,
            torch.no_grad(),
            torch.compiler.set_stance("force_eager"),
            Watch() as seen,
        ):
            choice = decide(model, asked if packed else "auto", batch["input_ids"].device, packed)
            hidden_BSD = last_hidden(model, batch)
        assert choice.name == config._attn_implementation == (name if packed else "sdpa")
        assert hidden_BSD.shape == (2, LENGTH, 64) and hidden_BSD.device.type == "cuda" and hidden_BSD.dtype == dtype
        assert not seen.waits
        # On a machine without the device sdpa of fake tensors is made of its parts; there it is one kernel.
        masks = {entry for entry in seen.square if packed or "mask" in entry or "(2, 1," in entry}
        assert not masks


def test_a_dense_mask_would_have_been_seen():
    config = PanguPiConfig(**SHAPE)
    config._attn_implementation = built_with("sdpa")
    model = PanguPiForCausalLM(config).bfloat16()
    with pretended(model, [[100, 156], [1, 255]]) as batch, torch.no_grad(), Watch() as seen:
        last_hidden(model, batch)
    assert any(f"(2, 1, {LENGTH}, {LENGTH})" in entry for entry in seen.square)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["sdpa", TORCH_VARLEN, PACKED_FLEX, "flash_attention_2", "flash_attention_3"])
def test_kernels_of_a_device_agree_with_float32(name):
    """Hidden states and gradients of a packed micro-batch in bf16, against sdpa with a dense mask in float32."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    available = {
        TORCH_VARLEN: HAVE_VARLEN,
        "flash_attention_2": attention.is_flash_attn_2_available(),
        "flash_attention_3": attention.is_flash_attn_3_available(),
    }
    if not available.get(name, True):
        pytest.skip(f"{name} is not installed")
    rows = [[100, 156], [1, 255], [31, 97, 128], [256]]
    positions_BS = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in rows])
    ids_BS = torch.randint(97, positions_BS.shape, generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids_BS, "position_ids": positions_BS, **document_bounds(positions_BS)}
    batch = {key: tensor.cuda() for key, tensor in batch.items()}
    results = []
    for implementation, dtype in (("sdpa", torch.float32), ("sdpa", torch.bfloat16), (name, torch.bfloat16)):
        config = PanguPiConfig(**SHAPE)
        config._attn_implementation = built_with("auto")
        torch.manual_seed(0)
        model = PanguPiForCausalLM(config).to("cuda", dtype)
        model.set_attn_implementation(implementation)
        hidden_BSD = last_hidden(model, batch)
        hidden_BSD.float().square().sum().backward()
        gradients = [parameter.grad.float() for parameter in model.model.layers.parameters()]
        results.append([hidden_BSD.detach().float(), *gradients])
    for exact, dense, other in zip(*results, strict=True):
        # bf16 itself is off by the second; a wrong mask or scale would be off by as much as the values.
        bound = max(3 * float((dense - exact).norm()), 1e-2 * float(exact.norm()))
        assert float((other - exact).norm()) <= bound
