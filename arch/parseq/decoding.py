"""From images to characters: one by one or all at once, then looking again (docs/methods/ocr.md: decoding)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from arch.parseq.character_decoder import CharacterDecoder
from arch.parseq.decoder import KeysValues
from arch.parseq.model import Parseq
from arch.parseq.orderings import cloze_mask

Mode = Literal["autoregressive", "parallel"]


@torch.no_grad()
def recognise(
    model: Parseq,
    images_B3HW: Tensor,
    mode: Mode = "autoregressive",
    refinements: int = 1,
    max_length: int | None = None,
) -> Tensor:
    """Logits of the characters in each image.

    Args:
        model: in evaluation mode.
        images_B3HW: normalised to [-1, 1].
        mode: each character given those before it, or all of them given none.
        refinements: how often every character is predicted again, given all others.
        max_length: characters to predict at most; None: the model's longest word.

    Returns:
        [B, Q, C], Q at most max_length + 1: with `autoregressive`, decoding ends when every word has. What follows a
        word's first [E] means nothing.
    """
    memory = model.decoder.project_memory(model.encoder(images_B3HW))
    logits_BQC = first_reading(model, memory, mode, max_length)
    for _ in range(refinements):
        logits_BQC = refine(model, memory, logits_BQC)
    return logits_BQC


def first_reading(decoder: CharacterDecoder, memory: list[KeysValues], mode: Mode, max_length: int | None) -> Tensor:
    """Logits [B, Q, C] before refinement; see `recognise`."""
    config, keys_B1MD = decoder.config, memory[0].keys
    outputs = (config.max_length if max_length is None else min(max_length, config.max_length)) + 1
    start_B1 = torch.full((len(keys_B1MD), 1), config.bos, device=keys_B1MD.device)
    if mode == "parallel":
        return decoder.decode(memory, start_B1, None, None, slice(0, outputs))[:, 0]
    return _one_by_one(decoder, memory, start_B1, outputs)


def _one_by_one(decoder: CharacterDecoder, memory: list[KeysValues], context_BL: Tensor, outputs: int) -> Tensor:
    """Position i from the characters before it, until every row has an [E]."""
    logits = []
    ended_B = torch.zeros(len(context_BL), dtype=torch.bool, device=context_BL.device)
    for position in range(outputs):
        length = context_BL.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=context_BL.device).triu(1)[None, None]
        step_BC = decoder.decode(memory, context_BL, None, causal, slice(position, position + 1))[:, 0, 0]
        logits.append(step_BC)
        chosen_B = step_BC.argmax(dim=-1)
        ended_B |= chosen_B == decoder.config.eos
        if bool(ended_B.all()):
            break
        context_BL = torch.cat([context_BL, chosen_B[:, None]], dim=1)
    return torch.stack(logits, dim=1)


def refine(decoder: CharacterDecoder, memory: Tensor | list[KeysValues], logits_BQC: Tensor) -> Tensor:
    """Predicts every character again, given all others of the previous prediction up to its first [E].

    From two layers on, a content position that saw the others would carry the very character that is asked for to its
    query; so content positions see only themselves and [B] here (the released code lets them see everything).
    """
    config = decoder.config
    chosen_BQ = logits_BQC[:, :-1].argmax(dim=-1)
    context_BQ = torch.cat([chosen_BQ.new_full((len(chosen_BQ), 1), config.bos), chosen_BQ], dim=1)
    hidden_B11Q = ((context_BQ == config.eos).cumsum(dim=1) > 0)[:, None, None, :]
    length = context_BQ.shape[1]
    alone_QQ = ~torch.eye(length, dtype=torch.bool, device=context_BQ.device)
    alone_QQ[:, 0] = False
    query_blocked = cloze_mask(length).to(context_BQ.device)[None] | hidden_B11Q
    return decoder.decode(memory, context_BQ, query_blocked, alone_QQ[None, None])[:, 0]
