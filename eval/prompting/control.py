"""Does the answer follow the prompt? Wrong-task prompts and permuted targets (docs/methods/delvm.md: prompting).

    wrong task          example pairs of task A, query of task B: the answer should look like A's targets
    permuted targets    every example has the target of another: what do the pairings tell, beyond the kind of picture?

What an answer looks like is told by its code histogram: the nearest of the tasks' centroids over example targets.
Shapes: N images, n codes of an image, V codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from eval.prompting.encoded_pairs import EncodedSet
from eval.prompting.prompts import prompts_of


class Answer(Protocol):
    """Generates one image per prompt."""

    def __call__(self, prompts_NP: np.ndarray, title: str) -> np.ndarray:
        """Codes, int64 [N, n]."""


class TaskClassifier:
    """Tells which task an answer belongs to: the nearest centroid of the tasks' code histograms.

    Args:
        targets: {task: codes of true targets, int64 [N, n]}.
        vocab_size: V.
    """

    def __init__(self, targets: Mapping[str, np.ndarray], vocab_size: int) -> None:
        from sklearn.neighbors import NearestCentroid

        self.names, self.vocab_size = list(targets), vocab_size
        histograms_NV = np.concatenate([code_histograms(codes_Nn, vocab_size) for codes_Nn in targets.values()])
        labels_N = np.repeat(np.arange(len(targets)), [len(codes_Nn) for codes_Nn in targets.values()])
        self._model = NearestCentroid().fit(histograms_NV, labels_N)

    def shares(self, answers_Nn: np.ndarray) -> dict[str, float]:
        """Share of the answers that each task is given."""
        found_N = self._model.predict(code_histograms(answers_Nn, self.vocab_size))
        return {name: float((found_N == number).mean()) for number, name in enumerate(self.names)}


def code_histograms(codes_Nn: np.ndarray, vocab_size: int) -> np.ndarray:
    """Share of each code in each image: float64 [N, V]."""
    return np.stack([np.bincount(row, minlength=vocab_size) / len(row) for row in codes_Nn])


def task_of_answers(
    sets: Sequence[EncodedSet], right: Mapping[str, np.ndarray], answer: Answer, vocab_size: int, pairs: int, seed: int
) -> dict[str, Any]:
    """What the answers look like, for every set's queries with every set's examples.

    Args:
        sets: at least two.
        right: {set: answers to its queries with its own examples}.
        answer: the model.
        vocab_size: V.
        pairs: example pairs in a prompt.
        seed: names the choice of examples.

    Returns:
        ``classes``: {set of the examples: {set of the queries: {set that the answers resemble: share}}};
        ``true_targets``: the same shares for the true targets, which is what the classifier can do;
        ``follows``: {set of the examples: share of the answers to *other* sets' queries that resemble its targets}.
    """
    classifier = TaskClassifier({encoded.name: encoded.examples_E2n[:, 1] for encoded in sets}, vocab_size)
    classes: dict[str, dict[str, dict[str, float]]] = {}
    for shown in sets:
        classes[shown.name] = {}
        for queries in sets:
            title = f"{queries.name} asked with pairs of {shown.name}"
            prompted = queries is shown
            codes_Nn = right[shown.name] if prompted else answer(prompts_of(queries, shown, pairs, seed), title)
            classes[shown.name][queries.name] = classifier.shares(codes_Nn)
    follows = {
        shown: float(np.mean([shares[shown] for queries, shares in rows.items() if queries != shown]))
        for shown, rows in classes.items()
    }
    true_targets = {encoded.name: classifier.shares(encoded.held_out_P2n[:, 1]) for encoded in sets}
    return {"pairs": pairs, "classes": classes, "true_targets": true_targets, "follows": follows}
