"""What the step-0 audit tests of a model's attention, on a real micro-batch: isolation, causality, rotary positions.

    documents of the rows laid end to end     a a a b b | c c c d d
    edited in the first test                    a         c           no hidden state of b and d may move
    edited in the second                        b         d           nor one of a and c

Every row and every border between rows is tested, because kernels of variable length are told where documents begin in
the whole micro-batch, and those that are not told may go wrong only where there is more than one row. Costs three
forward passes, or two.

Where output projections start at zero (`init_scheme: zero_output`), nothing that attention gathers reaches a hidden
state at step 0, and every mask would pass. There what it gathers is put in the projection's place (`heard`).

Shapes: B batch, S sequence, A outputs of all heads, D width, F frequencies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from data_pipeline.document_bounds import document_begins
from data_pipeline.loader import Batch
from pretrain.attention import last_hidden

CHANGING_ROTARY = ("dynamic", "longrope")
"""Kinds whose frequencies follow the length of what was seen."""
ROTARY_TOLERANCE = 1e-5
"""Relative; float32 rounds to 6e-8, bf16 to 4e-3."""


@torch.no_grad()
def check_document_isolation(model: nn.Module, batch: Batch, tolerance: float = 1e-3) -> str:
    """Edits every other document of a real micro-batch and checks that no hidden state of those between them moves.

    Returns a sentence for the audit table.

    Raises:
        RuntimeError: the mask leaks.
    """
    ids_BS, positions_BS = batch["input_ids"], batch["position_ids"]
    number_BS = document_begins(positions_BS).flatten().cumsum(0).view_as(positions_BS)
    moved = 0.0
    with heard(model) as silent:
        before_BSD = last_hidden(model, batch)
        for parity in (0, 1):  # always both, because under ZeRO-3 all ranks have to pass forward alike
            edited_BS = number_BS % 2 == parity
            changed_BS = torch.where(edited_BS, _another(ids_BS, model), ids_BS)
            after_BSD = last_hidden(model, {**batch, "input_ids": changed_BS})
            moved = max(moved, _largest_move(before_BSD, after_BSD, ~edited_BS))
    rows, documents = len(ids_BS), int(number_BS[-1, -1])
    if documents < 2:
        return "not testable on this batch: it holds one document"
    if moved > tolerance:
        raise RuntimeError(
            f"the document mask leaks: editing every other document of a micro-batch of {rows} rows moved one between "
            f"them by {moved:.2e} (attention {model.config._attn_implementation}); choose another task.attention"  # type: ignore[union-attr]
        )
    return (
        f"isolates {documents} documents in {rows} real rows (largest change elsewhere {moved:.1e}){_stand_in(silent)}"
    )


@torch.no_grad()
def check_causality(model: nn.Module, batch: Batch, tokens_per_image: int, tolerance: float = 1e-3) -> str:
    """Edits the last image of every sentence of a real micro-batch and checks that no hidden state before them moves.

    Returns a sentence for the audit table.

    Raises:
        RuntimeError: the mask lets tokens look ahead.
    """
    ids_BT = batch["input_ids"]
    kept_T = torch.arange(ids_BT.shape[1], device=ids_BT.device) < ids_BT.shape[1] + 1 - tokens_per_image
    kept_BT = kept_T.expand_as(ids_BT)
    changed_BT = torch.where(kept_BT, ids_BT, _another(ids_BT, model))
    with heard(model) as silent:
        before_BTD, after_BTD = (last_hidden(model, {**batch, "input_ids": ids}) for ids in (ids_BT, changed_BT))
    moved = _largest_move(before_BTD, after_BTD, kept_BT)
    if moved > tolerance:
        raise RuntimeError(
            f"attention looks ahead: editing the last image of every sentence moved an earlier token by {moved:.2e} "
            f"(attention {model.config._attn_implementation}); choose another task.attention"  # type: ignore[union-attr]
        )
    return (
        f"editing the last image of {len(ids_BT)} real sentences moves no earlier token (largest change {moved:.1e})"
        + _stand_in(silent)
    )


@contextmanager
def heard(model: nn.Module) -> Iterator[set[str]]:
    """Inside, what attention gathers reaches the residual stream also where the output projection is zero.

    A projection that gives nothing but zeros is replaced by a mean over neighbouring inputs. It is done to outputs and
    not to weights, so it asks nothing of ZeRO, under which a rank holds a part of them, and leaves nothing behind.
    Blocks must not be compiled, or their graphs would keep it (`pretrain/compilation.py:eager`).

    Yields:
        Names of the projections that were replaced, as they are met.
    """
    silent: set[str] = set()

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output_BSD: Tensor) -> Tensor | None:
            if output_BSD.any():
                return None
            silent.add(name)
            (gathered_BSA,) = inputs
            return adaptive_avg_pool1d(gathered_BSA, output_BSD.shape[-1])

        return hook

    projections = [(name, module) for name, module in model.named_modules() if name.endswith(".o_proj")]
    hooks = [module.register_forward_hook(hook_of(name)) for name, module in projections]
    try:
        yield silent
    finally:
        for handle in hooks:
            handle.remove()


def _stand_in(silent: set[str]) -> str:
    return f"; {len(silent)} output projections are zero and were stood in for" if silent else ""


def _another(ids_BS: Tensor, model: nn.Module) -> Tensor:
    return (ids_BS + 1) % model.config.vocab_size  # type: ignore[union-attr]


def _largest_move(before_BSD: Tensor, after_BSD: Tensor, where_BS: Tensor) -> float:
    """The largest change at some places, relative to the largest value; 0 if there are no such places."""
    moved_BSD = (after_BSD - before_BSD).abs() * where_BS.unsqueeze(-1)
    return float(moved_BSD.max() / before_BSD.abs().max())


def check_rotary(model: nn.Module) -> str:
    """Checks that the inverse frequencies of the rotary positions have not been rounded with the weights.

    DeepSpeed and `nn.Module.to` cast every buffer. A frequency in bf16 is off by up to 0.4 percent, at position 2,000
    that is more than a turn, and nothing else would tell.

    Returns a sentence for the audit table.

    Raises:
        RuntimeError: they have been rounded.
    """
    rotary = model.model.rotary_emb  # type: ignore[union-attr]
    found_F, kind = rotary.inv_freq, rotary.rope_type  # type: ignore[union-attr]
    error = 0.0
    if kind not in CHANGING_ROTARY:
        with torch.device("cpu"):
            right_F = LlamaRotaryEmbedding(model.config).inv_freq  # type: ignore[arg-type]
        error = float((found_F.double().cpu() / right_F.double() - 1).abs().max())  # type: ignore[operator]
    if found_F.dtype != torch.float32 or not error <= ROTARY_TOLERANCE:  # type: ignore[union-attr]
        raise RuntimeError(
            f"the rotary frequencies are in {found_F.dtype} and off by {error:.1e} (float32 is needed, and right to "  # type: ignore[union-attr]
            f"{ROTARY_TOLERANCE:.0e}); something cast the model's buffers with its weights: update deepspeed and "
            "transformers, or do not cast the model as a whole"
        )
    return f"float32 (largest relative error {error:.1e})"


__all__ = ["check_causality", "check_document_isolation", "check_rotary"]
