"""The folder in which `prepare` works until meta.json is written; removed then.

OUTPUT/.prepare/
  plan.json          the parts of the input (parts.py)
  shards/00000.json  what shard 0 holds: written when its part is complete
  rejects/00000.json what part 0 rejected
  progress/00000     stored bytes of part 0 read so far
  datatrove/         datatrove's logs and completion markers: what an interrupted call need not do again
  datatrove_finish/  the same for the last job on Slurm
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Workspace:
    """Names of the files inside one working folder."""

    directory: Path
    """The folder itself."""

    @classmethod
    def of(cls, output: Path) -> "Workspace":
        """The working folder of an output directory."""
        return cls(output / ".prepare")

    @property
    def output(self) -> Path:
        """Where finished shards go."""
        return self.directory.parent

    @property
    def plan(self) -> Path:
        """The plan; once it exists, everything a task needs does."""
        return self.directory / "plan.json"

    @property
    def tokenizer(self) -> Path:
        """Copy of the tokenizer; it stays beside the shards."""
        return self.output / "tokenizer"

    @property
    def logs(self) -> Path:
        """datatrove's `logging_dir`."""
        return self.directory / "datatrove"

    @property
    def finish_logs(self) -> Path:
        """`logging_dir` of the job that writes meta.json."""
        return self.directory / "datatrove_finish"

    def completion_marker(self, rank: int) -> Path:
        """datatrove's sign that a task is complete."""
        return self.logs / "completions" / f"{rank:05d}"

    def shard_report(self, rank: int) -> Path:
        """Report of a complete shard."""
        return self.directory / "shards" / f"{rank:05d}.json"

    def reject_log(self, rank: int) -> Path:
        """Rejects of a part."""
        return self.directory / "rejects" / f"{rank:05d}.json"

    def progress(self, rank: int) -> Path:
        """Bytes of a part read so far."""
        return self.directory / "progress" / f"{rank:05d}"

    def is_complete(self, rank: int) -> bool:
        """Whether a part is read and its shard written."""
        return self.completion_marker(rank).is_file() and self.shard_report(rank).is_file()

    def keep_complete_parts(self, parts: int) -> int:
        """Forget markers of parts without a report; returns how many parts are complete."""
        complete = [self.is_complete(rank) for rank in range(parts)]
        for rank in range(parts):
            if not complete[rank]:
                self.completion_marker(rank).unlink(missing_ok=True)
        return sum(complete)

    def make(self) -> None:
        """Create the folders."""
        for path in (self.shard_report(0), self.reject_log(0), self.progress(0)):
            path.parent.mkdir(parents=True, exist_ok=True)
