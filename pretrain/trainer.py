"""The training loop, and around it only what every run needs, whatever it trains.

    Order.batch(t) -> Loader -> micro-batches -> TrainingStep (forward, backward, update) -> log, validate, save

A step is a pure function of (weights, optimizer state, seed, step): batches come from arithmetic, random draws are
seeded per step, learning rates are computed, so resuming is loading one checkpoint and one Position.
"""

from __future__ import annotations

import gc
import json
import time
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from common.atomic_files import write_whole
from data_pipeline.loader import Loader
from data_pipeline.mixture import Mixture
from data_pipeline.order import Order
from data_pipeline.round_order import RoundsOrder
from pretrain.arithmetic import set_arithmetic
from pretrain.audit import audit, describe_sizes, publish
from pretrain.checkpoints.checkpoint import Checkpoints, Position, Saved
from pretrain.compilation import eager
from pretrain.config import TrainConfig
from pretrain.engine import Engine, accumulation_steps
from pretrain.errors import ConfigurationError, TrainingDiverged
from pretrain.guards import REPLAYED, DivergenceGuard
from pretrain.launchers import Launcher, find_launcher
from pretrain.monitoring.slow_steps import SlowSteps
from pretrain.monitoring.status_file import FAILED, RunStatus
from pretrain.monitoring.telemetry import Telemetry
from pretrain.monitoring.throughput import Throughput, peak_tflops
from pretrain.precision import resolve_precision
from pretrain.ranks.agreement import agree_on_data, check_shared_output
from pretrain.ranks.heartbeat import STEP, Heartbeat
from pretrain.ranks.stragglers import PhaseTimes, StragglerWatch
from pretrain.ranks.world import World, initialise_world
from pretrain.rounds.loss_record import LossRecord
from pretrain.rounds.multi_round import MultiRound
from pretrain.speed_choice import settle
from pretrain.stop_signal import StopSignal
from pretrain.training_step import Step, TrainingStep, with_next
from pretrain.transfers import on_device
from pretrain.validation import validate


class Outcome(Enum):
    """How a pass through the loop ended."""

    FINISHED = "finished"
    STOPPED = "stopped"
    ROLLED_BACK = "rolled back"


class Trainer:
    """One run, from configuration to last checkpoint."""

    def __init__(self, config: TrainConfig, launcher: Launcher | None = None) -> None:
        self.task = config.task
        self.directory = Path(config.output)
        set_arithmetic(config.engine)
        self.world: World = initialise_world(config.distributed.timeout_seconds)
        self.launcher = launcher or find_launcher(self.world.size > 1)
        self.status = RunStatus(self.directory, config.total_steps, self.world.size, self.world.is_main)
        self.heartbeat = Heartbeat(self.world, config.distributed, self.directory, self.status)
        # Everything that can be wrong with data and sizes fails here, before anything is allocated.
        sources, weights = self.task.training_sources()
        self.validation = self.task.validation_sources()
        self.source = Mixture(sources, weights)
        self.order = RoundsOrder([len(s) for s in sources], config.batch.size, config.seed, weights)
        self.order.restart(config.batch.size, config.batch.ramp)
        accumulation_steps(config, self.world.size)
        # Taken before a model is built, which may complete the task's configuration.
        self.fixed_identity = {"data": self.source.identity(), "task": self.task.identity()}
        self.checkpoints = Checkpoints(self.directory, config.checkpoint, self.world)
        self.telemetry = Telemetry(
            self.directory, config.telemetry, config.total_steps, self.world.is_main, self.status
        )
        self.rounds = MultiRound(config, self.order, self.source, self.world, self.telemetry)
        samples = config.rounds.count > 1 and (config.rounds.unit, config.rounds.loss_source) == ("sample", "log")
        self.warned = False
        """Whether it was said that the launcher does not wait long enough."""
        self.batch_change = ""
        """What is to be logged about a change of the global batch."""
        self.record = LossRecord(self.directory, samples, self.world.is_main)
        self.guard = DivergenceGuard(config.guards)
        self.phases, self.stragglers = PhaseTimes(self.world.device), StragglerWatch(config.telemetry.straggler_ratio)
        self.units, self.unit = self.task.units_per_sample()
        peak, self.peak_source = self._peak(config)
        self.choice = settle(config, self.world, peak)
        self.config = self.choice.applied(config)
        if resolve_precision(config) != self.choice.precision:
            peak, self.peak_source = self._peak(self.config)
        self.throughput = Throughput(self.units, self.task.flops_per_sample(), peak, self.world.size)
        self.pace = SlowSteps(torch.get_num_threads() if self.world.device.type == "cpu" else 0)

    def _peak(self, config: TrainConfig) -> tuple[float, str]:
        """TFLOP/s of one rank at the best, and where the number comes from."""
        if config.telemetry.peak_tflops is not None:
            return config.telemetry.peak_tflops, "telemetry.peak_tflops"
        return peak_tflops(self.world.device, torch.bfloat16 if resolve_precision(config) == "bf16" else torch.float32)

    def run(self) -> Outcome:
        """Trains until the last step, a stop signal, or an error; rolls back where the guard says so."""
        try:
            outcome = self._run()
        except BaseException as error:
            self.status.end(FAILED, f"{type(error).__name__}: {error}")
            raise
        self.status.end(outcome.value)
        return outcome

    def _run(self) -> Outcome:
        resume_from: int | None = None
        with StopSignal(self.launcher) as stop, self.heartbeat:
            check_shared_output(self.world, self.directory)
            held_out = {name: source.identity() for name, source in self.validation.items()}
            agree_on_data(self.world, self._identity() | {"held out": held_out})
            while True:
                outcome, resume_from = self._attempt(resume_from, stop)
                if outcome is not Outcome.ROLLED_BACK:
                    return outcome
                gc.collect()  # the engine is gone, its cycles are not: the next one must not stand beside it in memory

    def _attempt(self, resume_from: int | None, stop: StopSignal) -> tuple[Outcome, int]:
        """One engine from its making to its end; returns how it ended, and the batch at which data continues."""
        self.heartbeat.enter("start", 0)
        engine = Engine(self.config, self.task, self.world)
        position = self._restore(engine, resume_from)
        self._describe()
        self.status.update(first_step=position.step)
        self.telemetry.open(position.step)
        try:
            self._audit(engine, position)
            if self.config.validation.at_start and position.step == 0:
                self._validate(engine, position)
            outcome = self._all_rounds(engine, position, stop)
        except BaseException:
            self.telemetry.close()
            if self.world.size == 1:  # of several, the others may wait in a collective, and this one for them
                engine.close()
            raise
        self.telemetry.close()
        engine.close()
        return outcome, position.data_step

    def _all_rounds(self, engine: Engine, position: Position, stop: StopSignal) -> Outcome:
        """The rest of this round and those after it; between two rounds the units of the next are chosen."""
        for number in range(self.rounds.number(position.step), self.config.rounds.count + 1):
            self.record.begin(number, self.rounds.begin_data(number))
            losses = self.world.gather(self.record.recent(position.data_step, REPLAYED))[0]
            self.guard.begin(losses, position.non_finite, position.spikes)
            outcome = self._loop(engine, position, stop, number)
            if outcome is not Outcome.FINISHED or number == self.config.rounds.count:
                return outcome
            saved = self.checkpoints.at(position.step) if self.world.is_main else None
            self.heartbeat.enter("rescoring", position.step)
            if not self.rounds.close(number, engine, saved, stop):
                return Outcome.STOPPED
            self._describe()
        return Outcome.FINISHED

    def _loop(self, engine: Engine, position: Position, stop: StopSignal, number: int) -> Outcome:
        """The loop of round `number`. `position` moves with it."""
        config, telemetry, last = self.config, self.telemetry, self.rounds.last(number)
        take_step = TrainingStep(engine, config, self.world, self.phases, self.record.samples)
        overdue = False
        self.heartbeat.enter(STEP, position.step)
        for batches, coming in with_next(self.throughput.awaiting(self._loader(position, last))):
            began = time.monotonic()
            self.throughput.start()
            self.pace.begin()
            moving = engine.set_hyperparameters(self.rounds.hyperparameters(number, position.step))
            step = take_step(batches, coming, position.data_step, stop)
            self.record.add(position.data_step, step.loss, step.weight, step.samples_2B)
            verdict = self.guard.look(position.data_step, step.applied, step.loss)
            position.step, position.data_step = position.step + 1, position.data_step + 1
            position.skipped += not step.applied
            position.non_finite, position.spikes = self.guard.non_finite, self.guard.spikes
            self.throughput.stop(self.order.batch_size_at(position.data_step - 1))
            self.phases.step(self.throughput.waited)
            slow = self.pace.end(len(batches))
            done = position.step == last

            if slow:
                telemetry.event(position.step, "slow steps", slow)
            if verdict.event is not None:
                telemetry.event(position.step, *verdict.event)
            if verdict.give_up:
                raise TrainingDiverged(verdict.give_up)
            if verdict.roll_back:
                return self._roll_back(position)
            if position.step % config.telemetry.every == 0 or done:
                self._log(position, step, moving, engine.gradient_norm, self.rounds.label(number))
            else:
                telemetry.advance()
            # A signal may have come in the minutes that an evaluation takes.
            stopping = self._look_from_outside(engine, position, done, stop) or step.stopping
            due = overdue or stopping or position.step % config.checkpoint.every == 0
            overdue = due and self.guard.watching
            if (due and not overdue) or done:
                self.heartbeat.enter("checkpoint", position.step)
                self.record.flush()
                self.checkpoints.save(engine, position, self._identity())
                self._compare_with_grace(position, time.monotonic() - began)
            if stopping:
                saved = "not saved, because the loss is in doubt" if overdue else "saved"
                asked = stop.received or "another rank was stopped"
                telemetry.event(position.step, "signal", f"{asked}: {saved}, leaving")
                return Outcome.STOPPED
            self.heartbeat.enter(STEP, position.step)
        return Outcome.FINISHED

    def _look_from_outside(self, engine: Engine, position: Position, done: bool, stop: StopSignal) -> bool:
        """Validation and evaluations that are due now; returns whether any rank was told to stop meanwhile."""
        validating = position.step % self.config.validation.every == 0 or done
        if validating:
            self._validate(engine, position)
        hooks = [hook for hook in self.config.hooks if position.step % hook.every == 0 or done]
        for hook in hooks:
            self._evaluate(engine, position, hook)
        return bool((validating or hooks) and self.world.sum([float(stop.received is not None)])[0])

    def _compare_with_grace(self, position: Position, seconds: float) -> None:
        """Says it once if a stop, which waits for a step and its checkpoint, outlasts the launcher's patience."""
        if self.launcher is not None and not self.warned and (text := self.launcher.too_short(seconds)):
            self.telemetry.event(position.step, "grace", text)
            self.warned = True

    def _loader(self, position: Position, last: int) -> Loader:
        config = self.config
        return Loader(
            self.source,
            self.order,
            self.task.collate,
            rank=self.world.rank,
            world_size=self.world.size,
            micro_batch_size=config.batch.micro_size,
            start_step=position.data_step,
            stop_step=position.data_step + last - position.step,
            num_workers=config.loader.workers,
            prefetch=config.loader.prefetch,
            pin_memory=self.world.device.type == "cuda",
        )

    def _restore(self, engine: Engine, resume_from: int | None) -> Position:
        """The position to start from; after a rollback the data continues at `resume_from`."""
        wanted = self.config.checkpoint.resume or resume_from is not None
        saved = self.checkpoints.find() if wanted else None
        position = saved.position if saved else Position()
        self.rounds.reopen(position, saved.meta["identity"]["order"].get("rounds", []) if saved else [])
        if saved is not None:
            changes = self._resume_sizes(saved)
            self.checkpoints.load(engine, saved, self._identity())
            if changes:
                self.order.resize_from(position.data_step, changes)
        if resume_from is not None:
            position.data_step, position.non_finite, position.spikes = resume_from, 0, 0
        return position

    def _resume_sizes(self, saved: Saved) -> list[tuple[int, int]]:
        """Gives the order the global batches of a checkpoint; returns those from there on if they are to be others.

        Raises:
            ConfigurationError: they would be, but it was not asked for, or the run has several rounds.
        """
        then, first = saved.meta["identity"]["order"], saved.position.data_step
        asked = Order(self.order.sizes, self.config.batch.size, self.config.seed)
        asked.restart(self.config.batch.size, self.config.batch.ramp)
        self.order.restart(then["batch_size"], then.get("batch_changes", []))
        coming = asked.batch_sizes_from(first)
        before, now = describe_sizes(self.order.batch_sizes_from(first)), describe_sizes(coming)
        name = "batch.size with batch.ramp" if self.config.batch.ramp else "batch.size"
        if self.config.rounds.count > 1 and (before != now or then.get("batch_changes")):
            raise ConfigurationError(
                f"{name} is {now}, but {saved.path} was written with {describe_sizes(self.order.batch_sizes_from(0))}, "
                "and in a run of several rounds it cannot change: later rounds serve what the first one served"
            )
        if before == now:
            return []
        if not self.config.batch.allow_change:
            raise ConfigurationError(
                f"{name} is {now}, but {saved.path} was written with {before}; use that again, or set "
                f"batch.allow_change to continue with batches of {now} from here on"
            )
        self.batch_change = f"{before} -> {now} samples from batch {first} on"
        return coming

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint and its continuation must share, as it will be read back."""
        return json.loads(json.dumps(self.fixed_identity | {"order": self.order.identity()}))

    def _roll_back(self, position: Position) -> Outcome:
        """Announces a rollback; the caller reloads the checkpoint and steps over the batches since."""
        if self.checkpoints.find() is None:
            raise TrainingDiverged(
                f"training diverged at step {position.step}, before the first checkpoint; lower optimizer.lr or look "
                "at the data of these steps"
            )
        self.telemetry.event(
            position.step, "rollback", f"to the last checkpoint; data continues at {position.data_step}"
        )
        return Outcome.ROLLED_BACK

    def _describe(self) -> None:
        """Writes what `replay` and the reports need to know about the run's data."""
        if self.world.is_main:
            order = self.order.identity() | self.task.replay_description()
            content = json.dumps(order, indent=1, ensure_ascii=False)
            write_whole(self.directory / "order.json", content.encode())

    def _audit(self, engine: Engine, position: Position) -> None:
        samples = [
            self.source.sample(int(i)) for i in self.order.batch(position.data_step)[: self.config.batch.micro_size]
        ]
        batch = on_device(self.task.collate(samples), self.world.device)
        engine.model.eval()
        with eager(engine.model):
            task_rows = self.task.audit(engine.model, batch)
        engine.model.train()
        task_rows |= self.rounds.describe() | self.choice.describe()
        peak = f"{self.throughput.peak_tflops:.3f} TFLOP/s per rank ({self.peak_source})"
        rows = audit(self.config, engine, self.world, position, task_rows, peak)
        if self.world.is_main:
            self.telemetry.say(publish(rows, self.directory))
        if position.step:
            self.telemetry.event(position.step, "resume", f"data continues at batch {position.data_step}")
        if self.batch_change:
            self.telemetry.event(position.step, "batch size", self.batch_change)
            self.batch_change = ""

    def _log(
        self, position: Position, step: Step, moving: dict[str, float], norm: float, label: dict[str, int]
    ) -> None:
        rates = self.throughput.read(self.unit)
        spreads = self.phases.read(self.world)
        if straggler := self.stragglers.look(spreads, self.world, time.monotonic()):
            self.telemetry.event(position.step, "straggler", straggler)
        consumed = {self.unit: self.order.position(position.data_step) * self.units}
        self.telemetry.row(
            "train",
            position.step,
            loss=step.loss,
            **moving,
            grad_norm=norm,
            **step.metrics,
            **consumed,
            **rates,
            **label,
            phases={phase: spread._asdict() for phase, spread in spreads.items()},
        )
        shown = {f"{self.unit}/s": f"{rates[f'{self.unit}_per_second']:,.0f}", "mfu": f"{rates['mfu']:.1%}"}
        self.telemetry.advance(loss=f"{step.loss:.3f}", **shown, **{name: str(value) for name, value in label.items()})

    def _validate(self, engine: Engine, position: Position) -> None:
        self.heartbeat.enter("validation", position.step)
        losses: dict[str, float] = {}
        derived: dict[str, float] = {}
        for name, source in self.validation.items():
            losses[name], metrics = validate(
                engine, source, self.world, self.config.batch.micro_size, self.config.validation.samples
            )
            for metric, value in (metrics | self.task.validation_metrics(name, losses[name])).items():
                derived[f"{metric}/{name}"] = value
            if absent := [metric for metric in self.task.mean_metrics if f"{metric}/{name}" not in derived]:
                raise ConfigurationError(
                    f"{type(self.task).__name__}.mean_metrics names {absent[0]!r}, which is not reported of the "
                    f"held-out source {name}; return it from validation_metrics, or take it out"
                )
        if losses:
            mean = sum(losses.values()) / len(losses)
            means = {
                metric: sum(derived[f"{metric}/{name}"] for name in losses) / len(losses)
                for metric in self.task.mean_metrics
            }
            row = {"loss": mean, **means, **{f"loss/{name}": value for name, value in losses.items()}, **derived}
            self.telemetry.row("valid", position.step, **row)
            shown = ", ".join(f"{name} {value:.4f}" for name, value in row.items())
            self.telemetry.say(f"step {position.step}: validation: {shown}")

    def _evaluate(self, engine: Engine, position: Position, hook: Any) -> None:
        self.heartbeat.enter("evaluation", position.step)
        model = engine.model
        model.eval()
        with torch.no_grad(), eager(model):
            results = hook(
                step=position.step, model=model, run_directory=self.directory, context=self.task.evaluation_context()
            )
        model.train()
        self.telemetry.row("eval", position.step, results=results)


def train(config: TrainConfig, launcher: Launcher | None = None) -> Outcome:
    """Runs one configuration in this process (one rank of it). See `TrainConfig`.

    Args:
        config: of the run.
        launcher: who started this process as a rank, where that was found out before; the run ends when that ends.
    """
    return Trainer(config, launcher).run()
