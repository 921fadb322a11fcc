"""How much a run has forgotten: the loss on each part of its data, then and now (docs/methods/tiny_lm.md: forgetting).

    round 1    | part 1 | part 2 | ... | part 8 |            parts are runs of consecutive global batches
    trained    the loss of each batch in its own training step, before the model learned from it
    just_after the loss of the checkpoint at the end of the part, where the run kept one
    round_k    the ledger of the model frozen at the end of round k, where the run has one of whole batches
    final      the newest checkpoint, on the same batches

`gap` is final minus trained. While a model still learns much, it falls for early parts, because the model was young
when it saw them; `rebound`, final minus just_after, does not have that bias. `held_out` is the final model on
validation data: a part whose final loss lies below it is remembered. What it costs: a forward pass over the measured
batches per column, on one process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from tqdm import tqdm

from arch.device import choose_device
from common.atomic_files import write_whole
from common.errors import InputError
from common.find_model import newest_checkpoints
from data_pipeline.mixture import Mixture
from data_pipeline.round_order import RoundsOrder
from eval.commands import ForgettingOptions
from eval.plots import PALETTE, figure
from eval.probes.collapse import named_models
from eval.report.run_record import RunNotFoundError, read_run
from pretrain.checkpoints.checkpoint import Saved
from pretrain.command_line import parse
from pretrain.config import TrainConfig
from pretrain.ranks.world import World
from pretrain.rounds.ledger import Ledger, unit_means
from pretrain.rounds.loss_record import record_file
from pretrain.scoring import score_samples
from pretrain.tasks.base import TaskModule


class ForgettingError(InputError, ValueError):
    """The run does not have what the comparison needs; the message says what."""


@dataclass(frozen=True)
class TrainedRun:
    """A run that can be measured again: its task, its data in order, its checkpoints."""

    directory: Path
    config: TrainConfig
    source: Mixture
    order: RoundsOrder
    checkpoints: list[Saved]
    """Newest first."""
    seen: int
    """Global batches of round 1 so far."""

    @classmethod
    def open(cls, directory: Path) -> TrainedRun:
        """Reads a run directory; paths in its config.yaml are relative to the working directory, as in training.

        Raises:
            RunNotFoundError: no run there. ForgettingError: no checkpoint. ConfigurationError: another configuration.
        """
        if not (directory / "config.yaml").is_file():
            raise RunNotFoundError(f"{directory}: not a run directory (it has no config.yaml)")
        config, _ = parse(["--config", str(directory / "config.yaml"), "--output", str(directory)])
        found = newest_checkpoints(directory)
        if not found:
            raise ForgettingError(f"{directory}: the run has no complete checkpoint")
        checkpoints = [Saved.read(path) for path in found]
        sources, weights = config.task.training_sources()
        order = RoundsOrder([len(source) for source in sources], config.batch.size, config.seed, weights)
        then = checkpoints[0].meta["identity"]["order"]
        if "batch_changes" in then:
            raise ForgettingError(f"{directory}: its global batches have several sizes, so their losses do not compare")
        if {name: then.get(name) for name in order.identity()} != json.loads(json.dumps(order.identity())):
            raise ForgettingError(f"{directory}: its data or config.yaml is not that of its checkpoints any more")
        seen = then["rounds"][0]["first_step"] if "rounds" in then else checkpoints[0].position.data_step
        return cls(directory, config, Mixture(sources, weights), order, checkpoints, seen)

    def trained_losses(self) -> np.ndarray:
        """Mean loss of every batch of round 1 in its own training step: float64 [batches]; NaN where it was skipped.

        Raises:
            ForgettingError: neither the run's record nor metrics.jsonl has them all.
        """
        losses_N, counts_N = record_file(self.directory, 1, "batch").read(0, self.seen)
        if not counts_N.all():
            rows = {row["step"]: float(row["loss"]) for row in read_run(self.directory).rows.get("train", [])}
            losses_N = np.array([rows.get(step, np.nan) for step in range(1, self.seen + 1)])
            position = self.checkpoints[0].position
            if not rows.keys() >= set(range(1, self.seen + 1)) or position.step != position.data_step:
                raise ForgettingError(
                    f"{self.directory}: the training loss of {int((counts_N == 0).sum())} of {self.seen} batches was "
                    "recorded neither in rounds/ nor in metrics.jsonl; train with telemetry.every 1 from the start"
                )
        return losses_N.astype(np.float64)

    def ledgers(self) -> dict[str, np.ndarray]:
        """{"round_k": mean loss of every batch of round 1 under the model frozen at the end of round k}."""
        found = {}
        for path in sorted((self.directory / "rounds").glob("round_?.safetensors")):
            ledger = Ledger.load(path)
            if (ledger.origin["unit"], ledger.origin["loss_source"]) == ("batch", "frozen"):
                found[f"round_{ledger.origin['round']}"] = ledger.losses_N
        return found


def part_batches(seen: int, parts: int, batches: int | None) -> list[np.ndarray]:
    """Numbers of the batches to measure in each part: `batches` evenly spaced ones, or all of them.

    Raises:
        ForgettingError: fewer batches than parts.
    """
    if seen < parts:
        raise ForgettingError(f"round 1 has {seen} batches, which do not make {parts} parts; lower --parts")
    borders = np.arange(parts + 1) * seen // parts
    sizes = np.diff(borders)
    counts = [int(size) if batches is None else min(batches, int(size)) for size in sizes]
    return [
        first + np.arange(count) * size // count for first, size, count in zip(borders[:-1], sizes, counts, strict=True)
    ]


def measure(run: TrainedRun, options: ForgettingOptions) -> dict[str, Any]:
    """One run's entry of forgetting.json.

    Raises:
        ForgettingError: the training losses were not recorded, or there are too few batches.
    """
    world, task = World.alone(choose_device(options.device)), run.config.task
    trained_N, ledgers = run.trained_losses(), run.ledgers()
    parts = part_batches(run.seen, options.parts, options.batches)
    ends = np.arange(1, options.parts + 1) * run.seen // options.parts
    model = task.load_model(run.checkpoints[0].path).to(world.device)
    rows: list[dict[str, Any]] = []
    with tqdm(total=sum(part.size for part in parts), unit="batch", desc=str(run.directory)) as progress:
        for part_B, end in zip(parts, ends.tolist(), strict=True):
            batches_B = part_B[np.isfinite(trained_N[part_B])]
            if not batches_B.size:
                raise ForgettingError(f"{run.directory}: every batch from {part_B[0]} to {part_B[-1]} was skipped")
            final_B, counts_B = batch_losses(run, model, batches_B, world)
            columns = {"trained": trained_N[batches_B], "final": final_B}
            columns |= {name: losses_N[batches_B] for name, losses_N in ledgers.items()}
            if (
                saved := next((saved for saved in run.checkpoints if saved.position.data_step == end), None)
            ) is not None:
                then = task.load_model(saved.path).to(world.device)
                columns["just_after"] = batch_losses(run, then, batches_B, world)[0]
            means = {name: float(np.average(losses, weights=counts_B)) for name, losses in columns.items()}
            means["gap"] = means["final"] - means["trained"]
            if "just_after" in means:
                means["rebound"] = means["final"] - means["just_after"]
            row = {"first_batch": int(part_B[0]), "last_batch": int(part_B[-1]), "batches": batches_B.size}
            rows.append(row | {"left_out": part_B.size - batches_B.size} | means)
            progress.update(part_B.size)
    return {
        "run": str(run.directory),
        "checkpoint": run.checkpoints[0].path.name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "batches": run.seen,
        "held_out": held_out(run, model, world),
        "parts": rows,
    }


def batch_losses(
    run: TrainedRun, model: nn.Module, batches_N: np.ndarray, world: World
) -> tuple[np.ndarray, np.ndarray]:
    """Mean loss and weight of these global batches of round 1 under a frozen model: float32 [N] each."""
    module = TaskModule(run.config.task, model.eval())
    samples = np.concatenate([run.order.first_round(batch) for batch in batches_N.tolist()])
    micro_size = run.config.batch.micro_size
    losses, weights, _ = score_samples(module, run.config.task, run.source, samples, world, micro_size)
    return unit_means(losses, weights, run.config.batch.size)


def held_out(run: TrainedRun, model: nn.Module, world: World) -> float | None:
    """Mean over the validation sources of the final model's loss, on as many samples as the run's validation takes."""
    module, means = TaskModule(run.config.task, model.eval()), []
    for source in run.config.task.validation_sources().values():
        count = min(len(source), run.config.validation.samples or len(source))
        micro_size = run.config.batch.micro_size
        losses, weights, _ = score_samples(module, run.config.task, source, np.arange(count), world, micro_size)
        means.append(float(losses.sum() / weights.sum()))
    return sum(means) / len(means) if means else None


def table(name: str, result: Mapping[str, Any]) -> str:
    """One run's parts as text."""
    columns = [column for column in result["parts"][0] if isinstance(result["parts"][0][column], float)]
    held = "" if result["held_out"] is None else f", held out {result['held_out']:.4f}"
    head = f"{name}: {result['parameters']:,} parameters, {result['batches']:,} batches, {result['checkpoint']}{held}"
    lines = [head, f"{'part':>4} {'batches':>13}" + "".join(f" {column:>10}" for column in columns)]
    for number, part in enumerate(result["parts"], start=1):
        values = "".join(f" {part[c]:>10.4f}" if c in part else f" {'-':>10}" for c in columns)
        lines.append(f"{number:>4} {part['first_batch']:>6}-{part['last_batch']:<6}{values}")
    return "\n".join(lines)


def save_plot(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Losses by part, and final minus earlier, one colour per run."""
    drawing = figure(11, 4)
    losses, gaps = drawing.add_subplot(1, 2, 1), drawing.add_subplot(1, 2, 2)
    styles = {"trained": "--", "just_after": ":", "final": "-"}
    for number, (name, result) in enumerate(results.items()):
        colour = PALETTE[number % len(PALETTE)]
        for axis, columns in ((losses, styles), (gaps, {"gap": "--", "rebound": ":"})):
            for column, style in columns.items():
                points = [(place, part[column]) for place, part in enumerate(result["parts"], 1) if column in part]
                if points:
                    label = f"{name}: {column.replace('_', ' ')}"
                    axis.plot(*zip(*points, strict=True), style, color=colour, label=label, marker="o", markersize=3)
        if result["held_out"] is not None:
            losses.axhline(result["held_out"], color=colour, linewidth=0.8, alpha=0.6, label=f"{name}: held out")
    gaps.axhline(0, color="grey", linewidth=0.8)
    for axis, title in ((losses, "loss"), (gaps, "final loss minus loss then")):
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xlabel("part of round 1")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    drawing.savefig(path, dpi=120)


def run(options: ForgettingOptions) -> None:
    """``python -m eval forgetting``."""
    runs = {name: TrainedRun.open(Path(path)) for name, path in named_models(options.run, "run").items()}
    results: dict[str, Any] = {}
    for name, opened in runs.items():
        results[name] = measure(opened, options)
        print(table(name, results[name]))
    output = Path(options.output)
    write_whole(output / "forgetting.json", json.dumps(results, indent=1, ensure_ascii=False))
    save_plot(results, output / "forgetting.png")
    print(f"written: {output / 'forgetting.json'}, forgetting.png")
