"""lm-eval during training, on the model in memory.

Named in the training YAML, so that the trainer knows nothing of lm-eval:

    hooks:
      - class_path: eval.hooks.LmEvalHook
        init_args: {every: 500, tasks: [held_out], include_path: runs/x/held_out}
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from eval.commands import check_batch_size, check_limit
from pretrain.hooks import EvaluationHook


@contextmanager
def untouched_generators() -> Iterator[None]:
    """Gives every global random generator its state back, so that evaluating does not change the training run."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 (lm-eval uses the global one)
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


class LmEvalHook(EvaluationHook):
    """Evaluates lm-eval tasks every ``every`` steps. Tasks are found and read once, at the first evaluation.

    Args:
        tasks: lm-eval task or group names.
        every: steps between evaluations.
        include_path: folder of lm-eval YAML tasks.
        data: folder of local benchmark files in place of the hub.
        limit: documents per task, or the share of them below 1; None takes all.
        num_fewshot: examples in the prompt; None takes each task's own number.
        batch_size: sequences per forward pass, or lm-eval's `auto`.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        every: int = 1000,
        include_path: str | None = None,
        data: str | None = None,
        limit: int | float | None = None,
        num_fewshot: int | None = None,
        batch_size: int | str = 8,
    ) -> None:
        if every < 1:
            raise ValueError(f"every is {every}; it must be at least 1")
        check_limit(limit)
        check_batch_size(batch_size)
        for name, folder in (("include_path", include_path), ("data", data)):
            if folder is not None and not Path(folder).is_dir():
                raise ValueError(f"{name}: {folder} is not a folder")
        self.tasks, self.every, self.include_path, self.data = list(tasks), every, include_path, data
        self.limit, self.num_fewshot, self.batch_size = limit, num_fewshot, batch_size
        self._loaded: list[Any] | None = None

    def __call__(
        self, *, step: int, model: nn.Module, run_directory: Path, context: dict[str, Any]
    ) -> dict[str, dict[str, float]]:
        """{task: {metric: value}}, also written to RUN/eval/step_N.json; {} on ranks that only take part or wait.

        With ZeRO-3 every rank runs the same forward passes, because each holds a part of every weight. Otherwise rank 0
        evaluates alone and the others wait for it in their next collective operation.
        """
        from eval.harness_model import as_exported
        from eval.language.lm import evaluate_model, flatten, load_tasks, write_results

        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        partitioned = any(hasattr(parameter, "ds_id") for parameter in model.parameters())
        if rank != 0 and not partitioned:
            return {}
        was_training = model.training
        with untouched_generators(), torch.no_grad():
            if self._loaded is None:
                self._loaded = load_tasks(
                    self.tasks,
                    Path(self.data) if self.data else None,
                    Path(self.include_path) if self.include_path else None,
                    self.num_fewshot,
                )
            raw = evaluate_model(
                model,
                as_exported(context["tokenizer"]),
                self._loaded,
                num_fewshot=self.num_fewshot,
                limit=self.limit,
                batch_size=self.batch_size,
                bootstrap_iters=0,
                seed_generators=False,
            )
        model.train(was_training)
        if rank == 0:
            write_results(raw, run_directory / "eval", f"step_{step:08d}")
        return flatten(raw) if rank == 0 else {}
