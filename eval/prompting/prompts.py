"""Visual prompting: example pairs and a query go in as codes, an image comes out (docs/methods/delvm.md: prompting).

    prompt    [ input ; target ] x k, then the query        (2k + 1) n codes
    answer    n new codes, greedily, with the KV cache       decoded by the visual tokenizer

Every answer has exactly n codes: there is no end token. Nothing is sampled: the same prompt gives the same answer.
Shapes: N queries, K example pairs, n codes of an image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data_pipeline.permutation import derive_key, permute
from eval.prompting.encoded_pairs import EncodedSet
from eval.prompting.sets import VisionError


def choose_examples(
    queries: int, candidates: int, pairs: int, seed: int, *, among_queries: bool, part: int = 0
) -> np.ndarray:
    """Which candidates are shown to each query: int64 [queries, pairs], distinct in a row.

    A row is a prefix of the row that more pairs would give, so that prompts of different length are nested.

    Args:
        queries: number of queries.
        candidates: number of pairs to choose from.
        pairs: examples of each query.
        seed: names the choice.
        among_queries: candidate i is query i, which is never shown its own answer.
        part: distinguishes sets of one seed.
    """
    every = np.arange(candidates)
    rows = []
    for query in range(queries):
        order = permute(every, candidates, derive_key(seed, part, query))
        rows.append(order[order != query][:pairs] if among_queries else order[:pairs])
    return np.stack(rows)


def make_prompts(query_Nn: np.ndarray, inputs_NKn: np.ndarray, targets_NKn: np.ndarray) -> np.ndarray:
    """The codes of K pairs one after the other, then the query's: int64 [N, (2K + 1) n]."""
    pairs_NP = np.stack([inputs_NKn, targets_NKn], axis=2).reshape(len(query_Nn), -1)
    return np.concatenate([pairs_NP, query_Nn], axis=1)


def prompts_of(
    queries: EncodedSet, shown: EncodedSet, pairs: int, seed: int, *, permuted_targets: bool = False
) -> np.ndarray:
    """Prompts of one set's queries with example pairs of the same set, or of another: int64 [P, (2K + 1) n].

    `permuted_targets` gives every example the target of the next one in its prompt.
    """
    rows_PK = examples_of(queries, shown, pairs, seed)
    inputs_PKn, targets_PKn = np.moveaxis(shown.examples_E2n[rows_PK], 2, 0)
    shift = -1 if permuted_targets else 0
    return make_prompts(queries.held_out_P2n[:, 0], inputs_PKn, np.roll(targets_PKn, shift, axis=1))


def examples_of(queries: EncodedSet, shown: EncodedSet, pairs: int, seed: int) -> np.ndarray:
    """Which of `shown`'s examples each query of `queries` is given: int64 [P, K].

    Raises:
        VisionError: fewer examples than a prompt needs.
    """
    same = queries is shown and shown.among_queries
    candidates = len(shown.examples) - same
    if candidates < pairs:
        raise VisionError(f"{shown.name}: {candidates} example pairs, but a prompt needs {pairs}; add images")
    return choose_examples(
        len(queries.held_out), len(shown.examples), pairs, seed, among_queries=same, part=queries.number
    )


@torch.no_grad()
def generate_images(model: Any, prompts_NP: np.ndarray, tokens: int, batch_size: int, title: str) -> np.ndarray:
    """Greedy continuations of prompts of one length: int64 [N, tokens].

    Args:
        model: a causal LM of transformers, in evaluation mode.
        prompts_NP: codes, int64 [N, P].
        tokens: n, codes of an image.
        batch_size: prompts of one batch.
        title: for the progress bar.
    """
    from transformers import GenerationConfig

    settings = GenerationConfig(min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False, use_cache=True)
    answers = []
    with tqdm(total=len(prompts_NP), desc=title, unit="image", leave=False) as bar:
        for first in range(0, len(prompts_NP), batch_size):
            ids_BP = torch.from_numpy(prompts_NP[first : first + batch_size]).to(model.device)
            # Every code may occur in a prompt, so the mask cannot be told from the codes.
            row_BT = model.generate(ids_BP, attention_mask=torch.ones_like(ids_BP), generation_config=settings)
            answers.append(row_BT[:, ids_BP.shape[1] :].cpu().numpy())
            bar.update(len(ids_BP))
    return np.concatenate(answers)
