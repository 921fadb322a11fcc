"""A corpus of shards with a real tokenizer, and the ways to start a training run in a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
WORDS = (
    "the king said unto his people that every river runs to the sea and the sea is never full 我 们 看 书 好".split()  # noqa: SIM905
)
TINY = {
    "vocab_size": 384, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "series_terms": 2, "shortcut_count": 1, "shortcut_reduction": 4, "tie_word_embeddings": True,
    "max_position_embeddings": 64,
}  # fmt: skip
"""A PanGu-pi with every addition, small enough to train in seconds."""


def environment(**extra: str) -> dict[str, str]:
    """One thread per rank, offline, and the checkout importable."""
    keep = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    fixed = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TORCHDYNAMO_DISABLE": "1"}
    return keep | fixed | extra


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def deepspeed_command(script: str, *arguments: str, ranks: int = 2) -> list[str]:
    """The command line that starts `script` on gloo ranks through the real launcher."""
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    port = str(free_port())
    return [
        launcher,
        "--num_accelerators",
        str(ranks),
        "--master_port",
        port,
        "--log_level",
        "error",
        script,
        *arguments,
    ]


def torchrun_command(script: str, *arguments: str, ranks: int = 2) -> list[str]:
    """The same through torchrun."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)),
        *("--master-port", str(free_port()), script, *arguments),
    ]


def launch(command: Sequence[str], log: Path, **extra: str) -> subprocess.Popen:
    """Starts a command in its own process group, so that all its ranks can be killed at once."""
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(**extra),
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def rank_processes(launcher: int) -> list[psutil.Process]:
    """The processes of a launch that are ranks, by local rank; what they have forked has their words too."""
    found: dict[int, tuple[int, psutil.Process]] = {}
    for process in psutil.Process(launcher).children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            if (rank := process.environ().get("LOCAL_RANK")) is not None:
                found[process.pid] = (int(rank), process)
    ranks = [entry for entry in found.values() if entry[1].ppid() not in found]
    return [process for _, process in sorted(ranks, key=lambda entry: entry[0])]


def rows(run: Path, kind: str) -> list[dict[str, Any]]:
    """Rows of a run's metrics.jsonl."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def make_corpus(folder: Path) -> dict[str, Path]:
    """Token shards of a few hundred made-up documents below `folder`: {"train", "valid"} -> directory."""
    from data_pipeline.shards.prepare import prepare
    from data_pipeline.shards.prepare_config import PrepareConfig
    from tokenizer.train import TrainConfig, train_tokenizer

    random = np.random.default_rng(0)
    directories = {}
    for split, count in (("train", 300), ("valid", 20)):
        documents = [" ".join(random.choice(WORDS, random.integers(5, 40))) for _ in range(count)]
        text = "".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(documents))
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    train_tokenizer(
        TrainConfig(
            input=[str(folder / "train.jsonl")], vocab_size=TINY["vocab_size"], output=str(folder / "tokenizer")
        )
    )
    for split in ("train", "valid"):
        directories[split] = folder / "shards" / split
        prepare(
            PrepareConfig(
                input=[str(folder / f"{split}.jsonl")],
                output=str(directories[split]),
                tokenizer=str(folder / "tokenizer"),
            )
        )
    return directories


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """As `make_corpus`, once for all tests."""
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def tiny_arguments(corpus: dict[str, Path], tmp_path: Path) -> Callable[..., list[str]]:
    """A function (output, **overrides) -> command line of a tiny language-model run."""

    def arguments(output: Path, **overrides: Any) -> list[str]:
        shape = tmp_path / "tiny.yaml"
        shape.write_text(json.dumps(TINY))
        settings: dict[str, Any] = {
            "task": "pretrain.tasks.LanguageModelTask",
            "task.model": str(shape),
            "task.train": json.dumps([str(corpus["train"])]),
            "task.valid": json.dumps({"all": str(corpus["valid"])}),
            "task.sequence_length": 32,
            "output": output,
            "steps": 42,
            "batch.size": 8,
            "batch.micro_size": 2,
            "optimizer.lr": 0.01,
            "checkpoint.every": 7,
            "validation.every": 21,
            "validation.samples": 8,
            "telemetry.every": 1,
            "telemetry.tensorboard": "false",
            "telemetry.progress_bar": "false",
        }
        settings.update({name.replace("__", "."): value for name, value in overrides.items()})
        return [word for name, value in settings.items() for word in (f"--{name}", str(value))]

    return arguments
