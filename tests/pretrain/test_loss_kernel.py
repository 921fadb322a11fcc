"""The fused loss without a GPU: its kernel under Triton's interpreter, and compiled for devices that are not here."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pretrain.losses.fused_loss import token_losses
from pretrain.losses.loss_layout import LossLayout, has_triton
from tests.device.loss_kernels import exact_losses
from tests.pretrain import kernel_cases as cases
from tests.pretrain.conftest import ROOT

pytestmark = pytest.mark.skipif(not has_triton(), reason="Triton is not installed; the loss runs eagerly then")
FLOAT32 = 2.0**-24
ROUNDING = {"fp32": FLOAT32, "bf16": 2.0**-7, "fp16": 2.0**-11}
"""Relative error of storing a number, by type; the interpreter cuts bf16 off where a device rounds it."""
STEPS = 64
"""float32 roundings that one result has seen, at most: a tree over a block of 2^12, blocks, exp, log, differences."""


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What the kernel gave."""
    path = tmp_path_factory.mktemp("kernel") / "results.safetensors"
    command = [sys.executable, "-m", "tests.pretrain.kernel_cases", str(path)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_file(path)


@pytest.mark.parametrize("case", [case for case in cases.CASES if case[0] == "fp32"], ids=str)
def test_the_reference_is_torchs_own(case):
    """Its gradient, in closed form, is what autograd makes of its losses."""
    data, (weight_gt, weight_kd, *rest) = cases.rows(*case), cases.settings(case[1])
    logits = data.logits_CV.double().requires_grad_()
    losses, gradient = exact_losses(logits, data.teacher_CV, data.labels_C, data.weights_C, weight_gt, weight_kd, *rest)
    weights = 1.0 if data.weights_C is None else data.weights_C.double()
    objective = (weight_gt * weights * losses[0]).sum()
    if data.teacher_CV is not None:
        objective = objective + weight_kd * losses[2].sum()
    if cases.SETTINGS[case[1]].z_loss:
        objective = objective + losses[-1].sum()
    assert (torch.autograd.grad(objective, logits)[0] - gradient).abs().max() < 1e-12


def exact(dtype: str, setting: str, weighted: bool) -> tuple[Tensor, Tensor]:
    """Losses [R, C] and gradient [C, V] in float64, by torch's own functions."""
    data, config = cases.rows(dtype, setting, weighted), cases.settings(setting)
    return exact_losses(data.logits_CV, data.teacher_CV, data.labels_C, data.weights_C, *config)


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: "-".join(map(str, case)))
def test_every_result_is_exact_but_for_its_roundings(interpreted, case):
    name = "/".join(map(str, case))
    losses, gradient = exact(*case)
    got, memory = interpreted[f"{name}/losses"], interpreted[f"{name}/gradient"]
    # A logit of 40, scaled by 1 / 0.7, is the largest number that any difference is taken of.
    largest = 60 * STEPS * FLOAT32
    assert (got - losses).abs().max() <= 4 * largest
    assert torch.equal(got[1], losses[1].float()) and got[1].any() and not got[1].all()
    assert not got[:, 0].any() and not memory[0].any()
    error = (memory[:, : cases.V].double() - gradient).abs()
    assert (error - ROUNDING[case[0]] * gradient.abs()).max() <= 4 * largest * gradient.abs().max()
    assert not memory[:, cases.V :].any()
    if cases.SETTINGS[case[1]].distillation and not cases.SETTINGS[case[1]].softcap:
        assert got[2, 3] == 0, "equal rows diverge by exactly nothing"


@pytest.mark.parametrize(("setting", "weighted"), list(product(cases.SETTINGS, (False, True))))
def test_the_whole_loss_is_that_of_the_eager_form(interpreted, setting, weighted):
    for name, tensor in cases.whole(setting, weighted, LossLayout(cases.S)).items():
        torch.testing.assert_close(interpreted[f"head/{setting}/{weighted}/{name}"], tensor, rtol=1e-5, atol=1e-5)


def test_a_label_that_does_not_exist_is_seen_by_the_guards(interpreted):
    losses, gradient = interpreted["nowhere/losses"][0], interpreted["nowhere/gradient"]
    assert losses[:2].isnan().all() and losses[2:].isfinite().all()
    assert gradient[:2].isnan().all() and gradient[2:].isfinite().all()


@pytest.mark.parametrize("capability", [80, 90])
def test_compiles_for_devices_with_whole_lines_read_at_once(capability, tmp_path, monkeypatch):
    """Ahead of time, for A100 and H100: rows are read and written 16 bytes a thread, the lone label's logit apart."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pretrain.losses.loss_kernel import BLOCK, WARPS, token_losses_kernel

    names = token_losses_kernel.arg_names
    constants = {
        "TEACHER": True,
        "REVERSE": False,
        "WEIGHTED": True,
        "Z_LOSS": True,
        "CAPPED": True,
        "TEACHER_CAPPED": True,
        "GRADIENT": True,
    }
    constants |= {"BLOCK": BLOCK}
    types = {"logits_ptr": "*bf16", "teacher_ptr": "*bf16", "labels_ptr": "*i64", "weights_ptr": "*fp32",
             "out_ptr": "*fp32", "weight_gt": "fp32", "weight_kd": "fp32", "temperature": "fp32",
             "z_loss": "fp32", "softcap": "fp32", "teacher_softcap": "fp32"}  # fmt: skip
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    aligned = [i for i, name in enumerate(names) if name.endswith(("_ptr", "row_length"))]
    source = ASTSource(
        token_losses_kernel,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": WARPS})
    code = made.asm["ptx"]
    assert made.asm["cubin"] and code.count("ld.global.b16") == 1 and "cvt.rn.bf16" in code
    assert code.count("ld.global.v4.b32") == 8 and code.count("st.global.v4.b32") == 2 * BLOCK // (32 * WARPS * 8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: "-".join(map(str, case)))
def test_a_device_gives_what_the_interpreter_gives(interpreted, case):
    data = cases.rows(*case)
    teacher, weights = (None if x is None else x.cuda() for x in (data.teacher_CV, data.weights_C))
    logits = data.logits_CV.as_strided((cases.C, cases.ROW), (cases.ROW, 1)).cuda()[:, : cases.V]
    losses = token_losses(logits, teacher, data.labels_C.cuda(), weights, *cases.settings(case[1]), True)
    name = "/".join(map(str, case))
    torch.testing.assert_close(losses.cpu(), interpreted[f"{name}/losses"], rtol=1e-5, atol=1e-4)
    rounding = ROUNDING[case[0]]
    torch.testing.assert_close(
        logits.cpu(), interpreted[f"{name}/gradient"][:, : cases.V], rtol=4 * rounding + 1e-4, atol=1e-5
    )
