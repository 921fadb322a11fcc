"""The run that a budget pays for, settled in memory: micro-batch, ZeRO stage, recomputation, and a YAML that says why.

Of the shapes, the one with the lowest expected loss is tried first, without recomputation and with it (which leaves a
quarter less work for training), then the next smaller one, until a rank's memory holds it.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from common.atomic_files import write_whole
from pretrain.command_line import parse
from pretrain.config import TrainConfig
from pretrain.errors import ConfigurationError
from pretrain.planning.budget import MOST_SEQUENCES, Budget, Run, make_budget, with_batch
from pretrain.planning.budget_yaml import model_yaml, run_yaml
from pretrain.planning.options import BudgetConfig
from pretrain.planning.plan import Choice, Plan, largest_micro_batch, make_plan
from pretrain.planning.zero_memory import MASTER_BYTES, MOMENT_BYTES

BATCH_SLACK = 0.125
"""Share by which the batch may be rounded to a whole number of larger micro-batches."""


@dataclass(frozen=True)
class Settled:
    """A run, its configuration, and what it needs."""

    budget: Budget
    run: Run
    plan: Plan
    choice: Choice
    """The setting of the engine that it takes."""
    too_large: int | None
    """Parameters of the model that the time would pay for but the memory does not hold; None if it holds it."""


def settle(options: BudgetConfig) -> Settled:
    """The best run of the budget that fits into memory.

    Raises:
        ConfigurationError: no shape fits, or the budget is refused (`make_budget`).
    """
    without = make_budget(options)
    recomputing = make_budget(options, recomputation=True, device=without.device)
    best = without.runs[0]
    smaller = [run for run in without.runs if run.parameters <= best.parameters]
    for run in sorted(smaller, key=lambda run: run.parameters, reverse=True):
        too_large = None if run is best else best.parameters
        for budget in (without, recomputing):
            same = [other for other in budget.runs if other.fields["hidden_size"] == run.fields["hidden_size"]]
            if same and _may_fit(budget, run) and (found := _fit(budget, same[0], too_large)) is not None:
                return found
    memory = without.device.memory * (1 - options.headroom) / 1e9
    raise ConfigurationError(
        f"no shape fits into {memory:.3g} GB a rank (after the headroom); use devices with more memory, or --memory_gb"
    )


def _may_fit(budget: Budget, run: Run) -> bool:
    """Whether the states alone fit, cut as finely as ZeRO does; saves passes over models that are far too large."""
    return (MASTER_BYTES + MOMENT_BYTES) * run.parameters / budget.options.ranks <= budget.device.memory


def _fit(budget: Budget, run: Run, too_large: int | None) -> Settled | None:
    """The run with the largest micro-batch that fits, or None."""
    options, recomputes = budget.options, budget.recomputation
    config = parsed(budget, run)
    powers = [2**power for power in range(MOST_SEQUENCES.bit_length() - 1, -1, -1)]
    sizes = [size for size in powers if abs(with_batch(run, size, options.ranks).batch / run.batch - 1) <= BATCH_SLACK]
    while (size := largest_micro_batch(config, options, sizes, recomputes)) is not None:
        changed = with_batch(run, size, options.ranks)
        batch = replace(config.batch, size=changed.batch, micro_size=size)
        plan = make_plan(replace(config, batch=batch, steps=changed.steps), options, budget.device)
        fitting = [choice for choice in plan.choices if choice.fits and choice.checkpointing == recomputes]
        if plan.picked is not None and fitting:
            choice = plan.picked if plan.picked.checkpointing == recomputes else fitting[0]
            engine = replace(config.engine, zero_stage=choice.stage, activation_checkpointing=recomputes)  # type: ignore[arg-type]
            plan = replace(plan, config=replace(plan.config, engine=engine))  # what is written, for the report
            return Settled(budget, changed, plan, choice, too_large)
        sizes = [smaller for smaller in sizes if smaller < size]
    return None


def parsed(budget: Budget, run: Run) -> TrainConfig:
    """The configuration as `train.py` reads it, from files that are removed again."""
    with tempfile.TemporaryDirectory() as folder:
        model, file = Path(folder) / "model.yaml", Path(folder) / "run.yaml"
        model.write_text(model_yaml(run), encoding="utf-8")
        file.write_text(run_yaml(budget, run, str(model), micro_size=1), encoding="utf-8")
        return parse(["--config", str(file)])[0]


def files(options: BudgetConfig) -> tuple[Path, Path] | None:
    """Where the configuration and the model's shape are to be written; None if they are not.

    Raises:
        ConfigurationError: a file is there already and may not be replaced.
    """
    if options.write is None:
        return None
    file = Path(options.write)
    model = file.with_name(f"{file.stem}_model{file.suffix}")
    for path in (file, model):
        if path.exists() and not options.overwrite:
            raise ConfigurationError(f"{path} exists; give --overwrite true to replace it, or another --write")
    return file, model


def write(settled: Settled, file: Path, model: Path) -> None:
    """Writes the configuration and the model's shape, and reads them as `train.py` will."""
    write_whole(model, model_yaml(settled.run))
    micro_size = settled.plan.config.batch.micro_size
    text = run_yaml(settled.budget, settled.run, str(model), micro_size, settled.choice, settled.too_large)
    write_whole(file, text)
    parse(["--config", str(file)])
