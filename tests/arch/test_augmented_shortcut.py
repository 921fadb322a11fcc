"""The augmented shortcut: its formula, Lemma 1 and Theorem 4, and feature collapse.

Shapes: N tokens, D width, H heads, E = D/H. Diversity d_M(Z) = ||Z - mean row of Z||_F
(docs/methods/pangu_pi.md: diversity).
"""

import math

import pytest
import torch
from transformers.activations import ACT2FN

from arch.pangu_pi import AugmentedShortcut

LIPSCHITZ = {"silu": 1.0999, "gelu": 1.1290, "relu": 1.0, "tanh": 1.0}


def diversity(z_ND: torch.Tensor) -> torch.Tensor:
    return torch.linalg.matrix_norm(z_ND - z_ND.mean(0))


def normal(*shape: int, std: float = 1.0) -> torch.Tensor:
    return std * torch.randn(*shape, dtype=torch.float64)


def causal_attention(tokens: int, temperature: float = 1.0) -> torch.Tensor:
    """A random row-stochastic lower-triangular matrix."""
    future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    return (normal(tokens, tokens) * temperature).masked_fill(future, -math.inf).softmax(-1)


def mixing_factor(attention_NN: torch.Tensor) -> torch.Tensor:
    """sqrt(lambda_max) of Aᵀ(I - eeᵀ)A, e = 1/sqrt(N)."""
    tokens = len(attention_NN)
    centre = torch.eye(tokens, dtype=torch.float64) - torch.full((tokens, tokens), 1 / tokens, dtype=torch.float64)
    return torch.linalg.eigvalsh(attention_NN.T @ centre @ attention_NN)[-1].sqrt()


@pytest.mark.parametrize("activation", ["gelu", "silu"])
@pytest.mark.parametrize("count", [1, 3])
def test_equals_the_sum_of_bottlenecks_with_explicit_products(count, activation):
    torch.manual_seed(0)
    width, reduction = 24, 4
    shortcut = AugmentedShortcut(width, count, reduction, activation).double()
    for parameter in shortcut.parameters():
        torch.nn.init.normal_(parameter)
    assert sum(p.numel() for p in shortcut.parameters()) == 2 * count * width * (width // reduction)
    h = normal(2, 7, width)
    units = width // reduction
    total = torch.zeros_like(h)
    for i in range(count):
        down = shortcut.down_weight[i * units : (i + 1) * units].T
        up = shortcut.up_weight[i * units : (i + 1) * units]
        total += torch.matmul(ACT2FN[activation](torch.matmul(h, down)), up)
    torch.testing.assert_close(shortcut(h), total, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shortcut_input", ["normed", "raw"])
def test_layer_adds_the_shortcut_of_the_chosen_input_beside_attention(build, ids_BS, shortcut_input):
    model = build(shake=True, shortcut_input=shortcut_input).double()
    layer, seen = model.model.layers[1], {}
    layer.self_attn.register_forward_hook(lambda module, args, output: seen.update(attention=output[0]))
    layer.register_forward_hook(lambda module, args, output: seen.update(x=args[0], y=output))
    model(ids_BS)
    normed = layer.input_layernorm(seen["x"])
    inside = seen["x"] + seen["attention"] + layer.shortcut(normed if shortcut_input == "normed" else seen["x"])
    expected = inside + layer.mlp(layer.post_attention_layernorm(inside))
    torch.testing.assert_close(seen["y"], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_lemma_1_holds(seed):
    torch.manual_seed(seed)
    h, other, weight = normal(40, 16), normal(40, 16), normal(16, 16)
    attention = causal_attention(40, temperature=1.0 + seed)
    slack = 1 + 1e-12
    assert diversity(h @ weight) <= torch.linalg.matrix_norm(weight, 2) * diversity(h) * slack
    assert diversity(attention @ h) <= mixing_factor(attention) * diversity(h) * slack
    a, b = torch.rand(2, dtype=torch.float64)
    assert diversity(a * h + b * other) <= (a * diversity(h) + b * diversity(other)) * slack
    for name, constant in LIPSCHITZ.items():
        assert diversity(ACT2FN[name](h)) <= constant * diversity(h) * slack


@pytest.mark.parametrize("seed", range(3))
def test_theorem_4_holds_for_every_layer(seed):
    torch.manual_seed(seed)
    tokens, width, heads = 48, 32, 4
    z = normal(tokens, width)
    for _ in range(6):
        shortcut = AugmentedShortcut(width, 2, 4).double()
        for parameter in shortcut.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        attentions = [causal_attention(tokens, temperature=2.0) for _ in range(heads)]
        values = [normal(width, width // heads, std=width**-0.5) for _ in range(heads)]
        output = normal(width, width, std=width**-0.5)
        msa = torch.cat([a @ z @ w for a, w in zip(attentions, values, strict=True)], dim=1) @ output

        mixing = max(mixing_factor(a) for a in attentions) * heads**0.5
        attention_bound = mixing * max(torch.linalg.matrix_norm(w, 2) for w in values)
        attention_bound *= torch.linalg.matrix_norm(output, 2)
        units = len(shortcut.up_weight) // 2
        shortcut_bound = sum(
            LIPSCHITZ["gelu"]
            * torch.linalg.matrix_norm(shortcut.down_weight[rows], 2)
            * torch.linalg.matrix_norm(shortcut.up_weight[rows], 2)
            for rows in (slice(0, units), slice(units, 2 * units))
        )
        augmented = msa + z + shortcut(z)
        assert diversity(augmented) <= (attention_bound + 1 + shortcut_bound) * diversity(z)
        z = augmented


def collapse(blocks: int, identity: bool, bottleneck: int, seed: int) -> list[float]:
    """d_M(Z)/||Z||_F after every block of a stack of random causal attention, N = 128, D = 64, H = 4."""
    torch.manual_seed(seed)
    tokens, width, heads = 128, 64, 4
    future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    z = normal(tokens, width)
    relative = []
    for _ in range(blocks):
        q, k, v = (
            (z @ normal(width, width, std=width**-0.5)).view(tokens, heads, -1).transpose(0, 1) for _ in range(3)
        )
        scores = (q @ k.transpose(1, 2) / (width // heads) ** 0.5).masked_fill(future, -math.inf)
        out = (scores.softmax(-1) @ v).transpose(0, 1).reshape(tokens, width) @ normal(width, width, std=width**-0.5)
        if bottleneck:
            shortcut = AugmentedShortcut(width, 1, width // bottleneck).double()
            for parameter in shortcut.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
            out = out + shortcut(z)
        z = (out + z if identity else out).detach()
        relative.append((diversity(z) / torch.linalg.matrix_norm(z)).item())
    return relative


def test_attention_alone_collapses_and_the_shortcut_prevents_it():
    stacks = {"attention": (False, 0), "identity": (True, 0), "augmented": (True, 16)}
    at_24 = {
        name: sum(collapse(24, identity, bottleneck, seed)[-1] for seed in range(8)) / 8
        for name, (identity, bottleneck) in stacks.items()
    }
    assert at_24["attention"] < 1e-4
    assert at_24["augmented"] > at_24["identity"] > at_24["attention"]
