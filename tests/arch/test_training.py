"""The new parameters learn, terms separate, and decay groups and checkpoints know them."""

import pytest
import torch

from arch.pangu_pi import PanguPiForCausalLM


def train(model: PanguPiForCausalLM, steps: int) -> None:
    """AdamW without decay, on the same small batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    ids_BS = torch.randint(model.config.vocab_size, (4, 16), generator=torch.Generator().manual_seed(3))
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids_BS, labels=ids_BS).loss.backward()
        optimizer.step()


def changed(before: dict, model: PanguPiForCausalLM, suffix: str) -> bool:
    """Whether every parameter whose name ends so has moved."""
    return all(not torch.equal(before[n], p) for n, p in model.named_parameters() if n.endswith(suffix))


def snapshot(model: PanguPiForCausalLM) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_parameters_are_alive(build, dtype):
    model = build().to(dtype)
    start = snapshot(model)
    train(model, steps=1)
    scales = {n: p for n, p in model.named_parameters() if n.endswith(("act_fn.scale", "act_fn.bias"))}
    assert changed(start, model, "shortcut.up_weight")
    assert not changed(start, model, "shortcut.down_weight"), "no gradient can reach it at step 0"
    for name, parameter in scales.items():
        assert (parameter[1] != start[name][1]).all(), f"{name}: the second term is dead"
    train(model, steps=1)
    assert changed(start, model, "shortcut.down_weight")
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_identically_initialised_terms_never_separate(build):
    model = build()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.act_fn.scale.fill_(0.5)
    before = snapshot(model)
    train(model, steps=10)
    for layer in model.model.layers:
        series = layer.mlp.act_fn
        assert torch.equal(series.scale[0], series.scale[1]) and torch.equal(series.bias[0], series.bias[1])
    assert changed(before, model, "act_fn.scale")


@pytest.mark.parametrize("terms", [2, 4])
def test_default_initialisation_separates_every_pair_of_terms(build, terms):
    model = build(series_terms=terms)
    train(model, steps=10)
    for layer in model.model.layers:
        scale = layer.mlp.act_fn.scale
        for i in range(terms):
            assert all((scale[i] != scale[j]).all() for j in range(i))


@pytest.mark.parametrize("fields", [{}, {"series_scope": "scalar"}, {"series_learn_first": False}, {"series_terms": 1}])
def test_no_weight_decay_names_exactly_the_series_parameters(build, fields):
    model = build(**fields)
    names = dict(model.named_parameters())
    expected = {name for name in names if "act_fn" in name}
    assert model.no_weight_decay() == expected
    assert bool(expected) is (model.config.series_terms > 1)


def test_training_resumes_bit_exactly_from_a_saved_model(build, tmp_path):
    straight, stopped = build(), build()
    train(straight, steps=2)
    train(stopped, steps=2)
    stopped.save_pretrained(tmp_path)
    resumed = PanguPiForCausalLM.from_pretrained(tmp_path).train()
    for model in (straight, resumed):
        train(model, steps=2)
    for name, parameter in straight.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name


def test_gradient_checkpointing_changes_no_gradient(build, ids_BS):
    plain, checkpointed = build(shake=True), build(shake=True)
    checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for model in (plain, checkpointed):
        model.train()
        model(input_ids=ids_BS, labels=ids_BS, use_cache=False).loss.backward()
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter.grad, checkpointed.get_parameter(name).grad), name
