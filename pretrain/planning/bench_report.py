"""A bench from its command line to its files: `python -m pretrain bench`.

RESULTS/bench.txt      the table that is printed       RESULTS/winner.yaml   the winner, for a second --config
RESULTS/bench.json     every measurement               RESULTS/candidates/   one folder each: see bench_run.py
RESULTS/bench.png      bars
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from deepspeed.accelerator import get_accelerator
from tqdm import tqdm

from common.atomic_files import write_whole
from pretrain.command_line import run_with
from pretrain.config import TrainConfig
from pretrain.engine import accumulation_steps
from pretrain.errors import ConfigurationError
from pretrain.interruption import terminable
from pretrain.planning.bench import STAGES, Candidate, Findings, search
from pretrain.planning.bench_run import Runner, describe, machine, settings
from pretrain.planning.options import BenchConfig
from pretrain.precision import resolve_precision
from pretrain.quickstarts.commands_once import StepFailed

USUAL_LAUNCHES = 10
CPU_RANKS = 2
IDLE = 0.5
"""Load per core up to which a machine counts as idle."""
RESTLESS = 0.1
"""Spread of the reference above which the table says that little can be concluded."""
RESERVED = (
    ("zero_optimization", "stage"),
    ("train_micro_batch_size_per_gpu",),
    ("gradient_accumulation_steps",),
)
"""Fields of DeepSpeed's configuration that would override what is measured."""


def run(config: TrainConfig, text: str, options: BenchConfig) -> str:
    """Measures, writes all files, and returns the table.

    Args:
        config: the run.
        text: its complete YAML.
        options: what is measured, and for how long.

    Raises:
        ConfigurationError, DataError: what the run itself would fail with.
        StepFailed: no candidate worked; says why.
    """
    ranks = options.ranks or _ranks_here()
    for path in RESERVED:
        _refuse(config.engine.deepspeed, path)
    accumulation_steps(config, ranks)
    config.task.training_sources()  # missing shards are found before anything is launched
    results = Path(options.results or f"{config.output.rstrip('/')}_bench")
    with terminable(), tqdm(total=USUAL_LAUNCHES, unit="launch", dynamic_ncols=True) as progress:
        runner = Runner(config, text, options, ranks, results, progress)
        found = search(
            configured=_own(config), precisions=_precisions(config), allowed=_allowed(config, ranks), measure=runner
        )
        progress.total = progress.n
    if found.winner is None:
        told = {made.detail or made.status: None for rows in found.rows.values() for made in rows}
        raise StepFailed("no candidate could be measured:\n" + "\n".join(told))
    report = table(found, config, ranks, options)
    advice = _write_winner(found.winner, config, results)
    for name, content in (("bench.txt", report), ("bench.json", _as_json(found, config, ranks, options))):
        write_whole(results / name, content)
    draw(found, config.task.units_per_sample()[1], results / "bench.png")
    return f"{report}\n{advice}"


def from_words(words: Sequence[str]) -> str:
    """The command: `run` of a run's configuration and more on a command line."""
    return run_with("bench", words, BenchConfig, run)


def table(found: Findings, config: TrainConfig, ranks: int, options: BenchConfig) -> str:
    """What is printed: a line for every candidate, what counts as equal, the winner."""
    units, unit = config.task.units_per_sample()
    per_step = config.batch.size * units
    here = machine()
    plain = found.reference
    assert plain is not None and found.winner is not None
    resident = "largest resident memory of a rank, libraries included" if here["device"] == "cpu" else (
        "largest memory that a rank reserved on its device")  # fmt: skip
    lines = [
        f"{ranks} rank(s) on {here['count']} {'core' if here['device'] == 'cpu' else here['device'] + ' device'}(s), "
        f"torch {here['torch']}, DeepSpeed {here['deepspeed']}",
        f"a step: {config.batch.size} samples, {per_step:,} {unit}; {options.warmup_steps} steps to warm up, then at "
        f"most {options.timed_steps} or {options.timed_seconds:g} s; rates are medians of steps, waiting for data "
        "left out",
        f"peak: {resident}",
    ]
    # Only before the first launch is the load not in part our own.
    if (busy := next(iter(found.rows.values()))[0].load) > IDLE:
        lines.append(
            f"the machine was not idle when this began (load {busy:.1f} per core): times are longer than alone"
        )
    lines += ["", f"{'':26}{'micro-batch':>12}{'accumulate':>12}{unit + '/s':>14}{'s/step':>9}{'steps':>16}{'data':>6}"
              f"{'peak':>10}{'speed':>8}"]  # fmt: skip
    lines.append("-" * len(lines[-1]))
    for candidate, measurements in found.rows.items():
        name = f"ZeRO {candidate.zero_stage}, {candidate.precision}" + ", compiled" * candidate.compile
        split = config.batch.size // (candidate.micro_size * ranks)
        line = f"{name:26}{candidate.micro_size:12}{split:12}"
        rate = found.rate(candidate)
        if not rate:
            lines.append(f"{line}   {measurements[-1].status}: {measurements[-1].detail}".rstrip(": "))
            continue
        steps = [per_step / each for made in measurements for each in made.rates]
        peak = max(made.peak_memory for made in measurements)
        wait = max(made.data_wait for made in measurements)
        mark = " *" * (candidate == found.winner) + " (own)" * (candidate == found.configured)
        lines.append(
            f"{line}{rate:14,.0f}{per_step / rate:9.3f}{f'{min(steps):.3f} - {max(steps):.3f}':>16}{wait:6.0%}"
            f"{peak / 1e6:7,.0f} MB{rate / found.rate(plain):7.2f}x{mark}"
        )
    times = len([made for made in found.rows[plain] if made.rates])
    lines += [
        "",
        f"speed is relative to {describe(plain)}, measured {times} time(s): these lie {found.spread:.1%} apart, and "
        "what differs by less counts as equal",
        "accumulate: micro-batches of a rank in one step; steps: the fastest and the slowest that was timed; data: the "
        "share of time spent waiting for it",
        f"* the winner: {describe(found.winner)}" + _gain(found),
    ]
    if found.spread > RESTLESS:
        lines.append("this machine is too restless for small differences; measure again when nothing else runs on it")
    if missing := [c for c, rows in found.rows.items() if any(made.status == "no time" for made in rows)]:
        lines.append(
            f"not everything was measured within total_seconds {options.total_seconds:g} ({len(missing)} left); call "
            "the same again to go on"
        )
    return "\n".join(lines) + "\n"


def _gain(found: Findings) -> str:
    """What the winner means for the configuration."""
    assert found.winner is not None
    if found.winner == found.configured:
        return ", which is the configuration's own setting"
    if not (own := found.rate(found.configured)):
        return ""
    gain = found.rate(found.winner) / own - 1
    beyond = f"{gain:+.0%} against" if abs(gain) > found.spread else "simpler than, and equal to,"
    return f", {beyond} the configuration's own setting"


def draw(found: Findings, unit: str, path: Path) -> None:
    """Horizontal bars of all candidates; those without a rate say why."""
    from matplotlib.figure import Figure

    candidates = list(found.rows)
    figure = Figure(figsize=(8, 0.9 + 0.36 * len(candidates)), layout="constrained")
    axis = figure.add_subplot()
    colours = ["#2f9e63" if candidate == found.winner else "#3b7dd8" for candidate in candidates]
    rates = [found.rate(candidate) for candidate in candidates]
    bars = axis.barh(range(len(candidates)), rates, color=colours, height=0.7)
    said = [f"{rate:,.0f}" if rate else found.rows[candidate][-1].status
            for candidate, rate in zip(candidates, rates, strict=True)]  # fmt: skip
    axis.bar_label(bars, said, padding=4, fontsize=8)
    axis.set_yticks(range(len(candidates)), map(describe, candidates), fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.15)
    axis.set_xlabel(f"{unit} per second; green: the winner")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def _write_winner(winner: Candidate, config: TrainConfig, results: Path) -> str:
    """winner.yaml holds only what differs from the configuration; returns how to use it."""
    own, fields = settings(config, _own(config)), settings(config, winner)
    differing = {
        section: {name: value for name, value in values.items() if value != own[section][name]}
        for section, values in fields.items()
    }
    differing = {section: values for section, values in differing.items() if values}
    path = results / "winner.yaml"
    head = "The winner of a bench" + ("" if differing else ": the configuration's own setting, nothing to change")
    command = f"deepspeed pretrain/train.py --config CONFIG --config {path}"
    body = yaml.safe_dump(differing, sort_keys=False) if differing else ""
    write_whole(path, f"# {head}. For training: {command}\n{body}")
    return f"{path}: for training, {command}"


def _as_json(found: Findings, config: TrainConfig, ranks: int, options: BenchConfig) -> str:
    unit = config.task.units_per_sample()[1]
    rows = [
        {**asdict(candidate), f"{unit}_per_second": found.rate(candidate), "measurements": list(map(asdict, rows))}
        for candidate, rows in found.rows.items()
    ]
    assert found.winner is not None and found.reference is not None
    content = {
        "machine": machine(),
        "ranks": ranks,
        "options": asdict(options),
        "reference": asdict(found.reference),
        "spread": found.spread,
        "configured": asdict(found.configured),
        "winner": asdict(found.winner),
        "candidates": rows,
    }
    return json.dumps(content, indent=1)


def _ranks_here() -> int:
    accelerator = get_accelerator()
    return CPU_RANKS if accelerator.device_name() == "cpu" else accelerator.device_count()


def _precisions(config: TrainConfig) -> dict[int, str]:
    """What each stage trains in."""
    return dict.fromkeys(STAGES, resolve_precision(config))


def _own(config: TrainConfig) -> Candidate:
    engine = config.engine
    return Candidate(engine.zero_stage, config.batch.micro_size, engine.compile is True, resolve_precision(config))


def _allowed(config: TrainConfig, ranks: int) -> Callable[[int], bool]:
    return lambda micro_size: all(size % (micro_size * ranks) == 0 for _, size in config.batch.sizes)


def _refuse(given: Mapping[str, Any], path: tuple[str, ...]) -> None:
    """Raw DeepSpeed settings win over ours, so that all candidates would be the same one."""
    for name in path:
        if not isinstance(given, Mapping) or name not in given:
            return
        given = given[name]
    raise ConfigurationError(
        f"engine.deepspeed sets {'.'.join(path)}, which would override what is measured; leave it out"
    )
