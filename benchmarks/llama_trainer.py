"""transformers' `LlamaForCausalLM` in transformers' own `Trainer`: the peer of `benchmarks/time_to_quality.py`.

    torchrun --nproc-per-node 2 benchmarks/llama_trainer.py RUN.json

Its shape is ours without what PanGu-pi adds: `SHAPE` is copied (width, layers, heads, tied or not), everything else is
transformers' default, and the feed-forward layers are as wide as makes the parameters equal (a multiple of 8, at most
2 % off). It trains on packed blocks, as transformers' example `run_clm.py` does: all documents one after the other, cut
at the sequence length, no mask between documents, shuffled by the Trainer. Their tokens are those of our shards, so
both read the same documents between the same begin and end tokens.

RUN.json is what `run_description` makes. The Trainer's own defaults hold (AdamW, linear decay to zero, clipping at 1,
no weight decay, float32, eager) but for what the caller sets and what makes the race fair: batch, length, warm-up,
seed. The Trainer needs the package accelerate, which pyproject.toml requires (`make venv` installs it).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments, set_seed

from common.atomic_files import appearing

SHAPE = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("max_position_embeddings", "tie_word_embeddings", "rms_norm_eps"),
)
"""What the peer's configuration takes from ours."""
MULTIPLE = 8
"""Of which the width of the feed-forward layers is one, as matrix products like it."""
TOLERANCE = 0.02
"""Largest difference of the parameters, as a share of ours."""


def count(config: LlamaConfig) -> int:
    """Parameters of transformers' model, a tied matrix once; no weight is allocated."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in LlamaForCausalLM(config).parameters())


def equal_llama(shape: Any, parameters: int) -> dict[str, Any]:
    """Fields of the LLaMA that has as many parameters as our model.

    Args:
        shape: configuration of our model, with the fields SHAPE.
        parameters: of our model.

    Raises:
        ValueError: no width of the feed-forward layers comes within TOLERANCE.
    """
    fields = {name: getattr(shape, name) for name in SHAPE}
    narrow, wide = (count(LlamaConfig(**fields, intermediate_size=width)) for width in (MULTIPLE, 2 * MULTIPLE))
    steps = max(0, round((parameters - narrow) / (wide - narrow)))
    fields["intermediate_size"] = MULTIPLE * (1 + steps)
    found = narrow + steps * (wide - narrow)
    if abs(found - parameters) > TOLERANCE * parameters:
        raise ValueError(
            f"no LLaMA of {shape.num_hidden_layers} layers of {shape.hidden_size} has about {parameters:,} parameters: "
            f"feed-forward layers of {fields['intermediate_size']} give {found:,}; take another size or vocabulary"
        )
    return fields


def write_blocks(streams: Sequence[np.ndarray], length: int, path: Path) -> None:
    """The token streams (int64 [T] each) as one int32 array [blocks, length] in a .npy file; rests are dropped.

    Raises:
        ValueError: no stream has a whole block.
    """
    blocks_NS = np.concatenate([stream_T[: len(stream_T) // length * length] for stream_T in streams])
    if not blocks_NS.size:
        raise ValueError(f"none of {len(streams)} token streams has {length} tokens; give --source more text")
    with appearing(path) as temporary, temporary.open("wb") as file:
        np.save(file, blocks_NS.reshape(-1, length).astype(np.int32))


def run_description(
    model: dict[str, Any], blocks: Path, arguments: dict[str, Any], stop_after: int | None = None
) -> dict[str, Any]:
    """What the script reads (JSON-able).

    Args:
        model: fields of LlamaConfig.
        blocks: what `write_blocks` wrote.
        arguments: of TrainingArguments; `output_dir` is among them.
        stop_after: a step at whose end the processes leave at once; the times of the steps are in `stamps.json` then.
    """
    return {"model": model, "blocks": str(blocks), "arguments": arguments, "stop_after": stop_after}


class Blocks(torch.utils.data.Dataset):
    """The blocks as samples of transformers' own kind: the labels are the inputs, the model shifts them."""

    def __init__(self, path: str) -> None:
        self.blocks_NS = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.blocks_NS)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids_S = torch.from_numpy(self.blocks_NS[index].astype(np.int64))
        return {"input_ids": ids_S, "labels": ids_S}


class LeaveAfter(TrainerCallback):
    """Notes when each step ended, and ends the process after some, without the checkpoint of an orderly end."""

    def __init__(self, last: int, stamps: Path) -> None:
        self.last, self.stamps = last, stamps
        self.times: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.times.append(time.time())
        if state.global_step >= self.last:
            if state.is_world_process_zero:
                self.stamps.write_text(json.dumps(self.times))
            os._exit(0)


def main() -> None:
    run = json.loads(Path(sys.argv[1]).read_text())
    set_seed(run["arguments"]["seed"])
    stop_after, output = run["stop_after"], Path(run["arguments"]["output_dir"])
    trainer = Trainer(
        model=LlamaForCausalLM(LlamaConfig(**run["model"])),
        args=TrainingArguments(**run["arguments"]),
        train_dataset=Blocks(run["blocks"]),
        callbacks=[LeaveAfter(stop_after, output / "stamps.json")] if stop_after else [],
    )
    output.mkdir(parents=True, exist_ok=True)
    trainer.train()


if __name__ == "__main__":
    main()
