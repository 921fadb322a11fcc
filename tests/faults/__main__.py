"""The long form: `python -m tests.faults --injuries 200`, or `make faults`. Resumable, campaign by campaign.

Every campaign is one run with its own seed, the ZeRO stages in turn; kinds of injury come in shuffled rounds, so each
happens about equally often. Results are kept as JSON beside the campaigns; the report is written anew each time.
"""

from __future__ import annotations

import json
import platform
import random
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentParser
from tqdm import tqdm

from common.command_line import add_config_arguments, make_config
from tests.faults.campaign import EVERY, Campaign, Record
from tests.faults.injuries import INJURIES, LIMIT, PLANTED
from tests.pretrain.conftest import TINY, make_corpus

STAGES = 4
"""ZeRO stages, which campaigns have in turn."""


@dataclass(frozen=True)
class FaultsConfig:
    """Injures real two-rank runs again and again."""

    injuries: int = 200
    """At least so many."""
    seed: int = 0
    """Of kinds, moments and places."""
    length: int = 11
    """Injuries of one run, besides those planted in its data."""
    output: str = "runs/faults"
    """Results of campaigns, and the logs of those that broke a promise."""
    report: str = "docs/results/faults.md"
    """Where the table goes."""

    def __post_init__(self) -> None:
        for name in ("injuries", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")


def main() -> int:
    """Exit code: 0 all promises kept, 1 some broken, 2 wrong arguments."""
    parser = ArgumentParser(prog="python -m tests.faults", description=__doc__)
    add_config_arguments(parser, FaultsConfig, config_file=False)
    config = make_config(parser, FaultsConfig, parser.parse_args().as_dict())
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    records: list[Record] = []
    broken: list[str] = []
    with tempfile.TemporaryDirectory() as scratch, tqdm(total=config.injuries, unit="injury") as bar:
        corpus = make_corpus(Path(scratch))
        shape = Path(scratch, "tiny.yaml")
        shape.write_text(json.dumps(TINY))
        task = {"task": "tests.faults.language.WoundedLanguageModel", "task.model": str(shape)}
        number = 0
        while len(records) < config.injuries and not broken:
            kept = folder / f"{number:03}.json"
            if not kept.exists():
                campaign = folder / f"{number:03}"
                try:
                    stage, seed = number % STAGES, config.seed + number
                    found = Campaign(campaign, corpus, stage, seed, _kinds(config, number), task).carry_out()
                except AssertionError as error:
                    broken.append(
                        f"campaign {number} (ZeRO stage {number % STAGES}; its logs are in {campaign}): {error}"
                    )
                    break
                kept.write_text(json.dumps([asdict(record) for record in found], indent=1))
                shutil.rmtree(campaign)
            records += [Record(**record) for record in json.loads(kept.read_text())]
            bar.update(min(len(records), config.injuries) - bar.n)
            number += 1
    report(records, number, config)
    print("\n".join(broken) or f"{len(records)} injuries, every promise kept: {config.report}")
    return 1 if broken else 0


def _kinds(config: FaultsConfig, number: int) -> list[str]:
    """The kinds of campaign `number`: a stretch of one endless stream of shuffled rounds."""
    stream: list[str] = []
    draw = random.Random(config.seed)
    while len(stream) < (number + 1) * config.length:
        stream += draw.sample(sorted(INJURIES), len(INJURIES))
    return stream[number * config.length :][: config.length]


def report(records: list[Record], campaigns: int, config: FaultsConfig) -> None:
    """A table by kind."""
    stages = ", ".join(str(stage) for stage in range(min(campaigns, STAGES)))
    lines = [
        "# Faults, injected",
        "",
        f"`make faults` (`python -m tests.faults --injuries {config.injuries} --seed {config.seed}`; "
        f"Python {platform.python_version()}, two gloo ranks, CPU): {len(records)} injuries to {campaigns} runs of a "
        f"small language model at ZeRO stages {stages}, a checkpoint every {EVERY} steps.",
        "",
        f"After each injury the job ended within {LIMIT:.0f} s, said what had happened where anybody was left to say "
        "it, and the next launch went on by itself (once a full disk was emptied, or the right shards were back). In "
        "the end every run had, to the bit, the weights and every step's loss of a run that was left alone: no sample "
        "lost, none seen twice beyond the steps done again. NaN and spikes are planted in the data, so that run has "
        "them too.",
        "",
        "| injury | times | seconds until the job had ended, median and largest | steps done again, mean and most |",
        "| --- | --- | --- | --- |",
    ]
    for kind, injury in INJURIES.items():
        if not (those := [record for record in records if record.kind == kind]):
            continue
        seconds = [record.seconds for record in those]
        ended = f"{np.median(seconds):.1f}, {max(seconds):.1f}" if any(seconds) else "at once"
        # Step 0: the log of steps ended in a line that the full disk had cut off.
        redone = [record.redone for record in those if record.step] or [0]
        again = f"{np.mean(redone):.1f}, {max(redone)}"
        lines.append(f"| {kind} | {len(those)} | {'goes on' if injury.survives else ended} | {again} |")
    for kind in PLANTED.values():
        outcome = "rolled back, its batches stepped over" if "spike" in kind else "the update skipped"
        lines.append(f"| {kind} | {sum(record.kind == kind for record in records)} | goes on | {outcome} |")
    path = Path(config.report)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
