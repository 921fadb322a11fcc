"""What `python -m data_pipeline prepare` is asked to do."""

from dataclasses import dataclass, field
from typing import Any, Literal

from data_pipeline.errors import PrepareError
from data_pipeline.pairs.pairs import PairsConfig
from tokenizer.inputs.broken_text import BrokenText


@dataclass(frozen=True)
class PrepareConfig:
    """Turns raw text, or pairs of images, into token shards.

    The same call again does nothing when the shards are complete, and continues when it was interrupted.
    """

    input: list[str]
    """Files or directories (.jsonl, .json, .txt, each also .gz, .bz2, .xz, .zst; .parquet), directories written by
    `datasets.save_to_disk`, or ids of hub data sets (`owner/name` or `owner/name@configuration`). With pairs: .parquet
    files or folders of images."""
    output: str
    """Directory for the shards and meta.json."""
    tokenizer: str
    """Tokenizer: a directory, a .model or tokenizer.json file, or a hub id. It needs an eos token; one
    without bos begins documents with eos. With pairs: the directory or run of a visual tokenizer, which has neither."""
    workers: int = 0
    """Processes at a time; 0: one per CPU core (with slurm and ray: no limit). It does not change the result."""
    executor: Literal["local", "slurm", "ray"] = "local"
    """Where the work runs. slurm and ray need `output` on a file system that all nodes share."""
    text_field: str = "text"
    """Field or column that holds the text, also a nested one (`meta.text`)."""
    text_files: Literal["document", "lines"] = "document"
    """A .txt file is one document, or every non-blank line of it is one."""
    split: str = "train"
    """Split of hub data sets and of data sets on disk that have splits."""
    reject_threshold: float = 0.01
    """Largest share of the documents that may be rejected (broken JSON, invalid UTF-8, no text, unreadable images);
    beyond it prepare fails and shows why."""
    broken_text: BrokenText = "skip"
    """Documents of broken text (not UTF-8, half a surrogate pair): skip them, which counts towards reject_threshold;
    replace what is broken by U+FFFD, counted; or refuse the first one."""
    part_bytes: int | None = None
    """Stored bytes (pairs: bytes of pixels to encode) per task: the grain of parallelism and of resuming, one shard
    each. None: a 64th of the input, but 4 MiB at least and 256 MiB at most."""
    executor_options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of datatrove's Slurm or Ray executor, such as {partition: cpu, time: "12:00:00",
    mem_per_cpu_gb: 4, env_command: "source .venv/bin/activate"}; Slurm needs the first two."""
    pairs: PairsConfig | None = None
    """Images instead of text: how they become records, such as --pairs.task edges; --pairs.help lists the rest. Needs a
    visual tokenizer."""

    def __post_init__(self) -> None:
        if not self.input:
            raise PrepareError("input: name at least one file, directory or data set")
        if self.workers < 0:
            raise PrepareError(f"workers: expected 0 or more, found {self.workers}")
        if not 0 <= self.reject_threshold <= 1:
            raise PrepareError(f"reject_threshold: expected a share from 0 to 1, found {self.reject_threshold}")
        if self.part_bytes is not None and self.part_bytes < 1:
            raise PrepareError(f"part_bytes: expected at least 1, found {self.part_bytes}")
