"""Exact parameter counts and the additions' share of the FLOPs, without allocating weights."""

import re
import tracemalloc
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from arch.__main__ import main
from arch.pangu_pi import PanguPiConfig, PanguPiForCausalLM, SeriesActivation
from arch.pangu_pi.accounting import count_flops, count_parameters
from arch.pangu_pi.load_config import load_model_config
from arch.pangu_pi.series_activation import gated_series

from .conftest import PLAIN, SHAPE

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MODELS = CONFIGS / "pangu_pi" / "models"
VARIANTS = [
    {},
    PLAIN,
    {"tie_word_embeddings": True, "num_key_value_heads": 4},
    {"series_terms": 4, "series_learn_first": False, "shortcut_count": 3},
    {"series_scope": "scalar", "attention_bias": True, "mlp_bias": True, "head_dim": 24, "qk_norm": True},
]

# docs/methods/pangu_pi.md: parameters and FLOPs; docs/methods/tiny_lm.md: shapes.
EXACT = {
    "pangu_pi_1b": 1_033_246_720,
    "pangu_pi_7b": 6_727_240_704,
    "llama_1b": 1_029_830_656,
    "llama_7b": 6_695_555_072,
    "tiny_lm_released": 951_983_872,
}


def meta_model(config: PanguPiConfig) -> PanguPiForCausalLM:
    with torch.device("meta"):
        return PanguPiForCausalLM(config)


@pytest.mark.parametrize(("name", "total"), EXACT.items())
def test_the_papers_models_have_exactly_their_parameters(name, total):
    folder = MODELS if name != "tiny_lm_released" else CONFIGS / "tiny_lm" / "models"
    assert count_parameters(load_model_config(folder / f"{name}.yaml")).total == total


def test_the_additions_of_the_papers_models():
    for name, shortcut, series in (("1b", 3_145_728, 270_336), ("7b", 30_408_704, 1_276_928)):
        parameters = count_parameters(load_model_config(MODELS / f"pangu_pi_{name}.yaml"))
        assert (parameters.shortcut, parameters.series) == (shortcut, series)
    pro = load_model_config(MODELS / "pangu_pi_1b_pro.yaml")
    assert count_parameters(pro).base == 990_981_376


@pytest.mark.parametrize(
    ("fields", "total", "share"),
    [
        ({"hidden_size": 1792, "num_hidden_layers": 20, "intermediate_size": 4864}, 951_983_872, 0.1807),
        ({"hidden_size": 1792, "num_hidden_layers": 21, "intermediate_size": 4963}, 1_002_158_080, 0.1717),
        ({"hidden_size": 2048, "num_hidden_layers": 22, "intermediate_size": 5632}, 1_327_065_088, 0.1482),
        ({"hidden_size": 2048, "num_hidden_layers": 22, "intermediate_size": 6912}, 1_500_080_128, 0.1311),
        (
            {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 11008, "vocab_size": 32000},
            6_738_415_616,
            0.0389,
        ),
    ],
)
def test_plain_shapes_of_the_specs(fields, total, share):
    shape = {"vocab_size": 48000, "num_attention_heads": fields["hidden_size"] // 128, **fields}
    parameters = count_parameters(PanguPiConfig(**shape, **PLAIN))
    assert parameters.total == total
    assert parameters.embedding_and_head_share == pytest.approx(share, abs=5e-5)


@pytest.mark.parametrize("config", sorted(MODELS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_shapes_match_a_model_without_weights(config):
    shape = load_model_config(config)
    total = count_parameters(shape).total
    assert total == sum(p.numel() for p in meta_model(shape).parameters())
    if about := re.search(r"_(\d+)m$", config.stem):
        assert total == pytest.approx(int(about[1]) * 1e6, rel=0.15)


@pytest.mark.parametrize("fields", VARIANTS)
def test_parts_match_the_model(fields):
    config = PanguPiConfig(**{**SHAPE, **fields})
    parameters, model = count_parameters(config), meta_model(config)

    def size(pattern: str) -> int:
        return sum(p.numel() for name, p in model.named_parameters() if re.search(pattern, name))

    assert parameters.total == sum(p.numel() for p in model.parameters())
    assert parameters.attention == size(r"self_attn\.\w_proj")
    assert parameters.feed_forward == size(r"mlp\.\w+_proj")
    assert parameters.norms == size("norm")
    assert parameters.series == size("act_fn")
    assert parameters.shortcut == size("shortcut")


@pytest.mark.parametrize("fields", VARIANTS)
def test_flops_match_what_pytorch_counts(fields):
    config = PanguPiConfig(**{**SHAPE, **fields}, attn_implementation="eager")
    flops, tokens = count_flops(config, sequence_length=32), 2 * 32
    with FlopCounterMode(display=False) as counter:
        PanguPiForCausalLM(config)(input_ids=torch.zeros(2, 32, dtype=torch.long), use_cache=False)
    full_scores = flops.scores * 32 / 16.5  # eager attention also computes the half that the mask hides
    matmuls = flops.linear + flops.shortcut + flops.head + full_scores
    assert counter.get_total_flops() == pytest.approx(matmuls * tokens, rel=1e-12)
    assert flops.forward_per_token == pytest.approx(matmuls - full_scores + flops.scores + flops.series)
    assert flops.train_per_token == 3 * flops.forward_per_token


class ElementwiseFlops(TorchDispatchMode):
    """Counts element-wise operations: a fused multiply-add two per element, SiLU four, others one."""

    COST = {"aten::addcmul": 2, "aten::silu": 4}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        name = function._schema.name
        if isinstance(output, torch.Tensor) and not function.is_view:
            self.total += self.COST.get(name, 1) * output.numel()
        return output


def test_overheads_are_what_the_paper_claims():
    for name in ("1b", "7b"):
        flops = count_flops(load_model_config(MODELS / f"pangu_pi_{name}.yaml"), 2048)
        assert 0.0045 < flops.shortcut / flops.linear < 0.006
        assert flops.series / flops.linear < 0.002
        assert flops.series / flops.linear == pytest.approx({"1b": 0.0005, "7b": 0.00025}[name], abs=2e-5)


def test_series_flops_match_the_operations_that_run():
    config = PanguPiConfig(**SHAPE)
    series = SeriesActivation(config.intermediate_size, config.series_activation_names).to("meta")
    v = torch.empty(10, config.intermediate_size, device="meta")
    with ElementwiseFlops() as counter:
        gated_series(v, v, series.scale, series.bias, series.activations)
    plain = (4 + 1) * v.numel()  # SiLU and the gate product, which LLaMA has too
    per_layer = count_flops(config, 32).series / config.num_hidden_layers
    assert counter.total - plain == per_layer * 10


def test_inspect_prints_the_7b_shape_without_allocating_it(capsys):
    tracemalloc.start()
    assert main(["inspect", "--config", str(MODELS / "pangu_pi_7b.yaml"), "--sequence_length", "4096"]) == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000
    printed = capsys.readouterr().out
    for figure in ("6,727,240,704", "1,276,928", "30,408,704", "12.28%", "0.52%", "sequence length 4096"):
        assert figure in printed


def test_inspect_reports_a_missing_file_on_one_line(capsys):
    assert main(["inspect", "--config", "nowhere.yaml"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "arch inspect: nowhere.yaml: no such model configuration (a YAML file or a transformers directory)"
    ]
    with pytest.raises(SystemExit, match="2"):
        main(["inspect", "--confg", "x"])
