"""The training loop, and around it only what every run needs, whatever it trains.

    Order.batch(t) -> Loader -> micro-batches -> Task.loss -> engine.backward -> engine.update -> log, validate, save

A step is a pure function of (weights, optimizer state, seed, step): batches come from arithmetic, random draws are
seeded per step, learning rates are computed, so resuming is loading one checkpoint and one Position.
"""

from __future__ import annotations

import gc
import json
import time
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from data_pipeline import Batch, Loader, Mixture, RoundsOrder
from pretrain.agreement import agree_on_data, check_shared_output
from pretrain.audit import audit, publish
from pretrain.checkpoint import Checkpoints, Position, Saved
from pretrain.config import TrainConfig
from pretrain.distributed import World, initialise_world
from pretrain.durable import write_whole
from pretrain.engine import Engine, accumulation_steps, resolve_precision
from pretrain.errors import ConfigurationError, TrainingDiverged
from pretrain.guards import REPLAYED, DivergenceGuard, StopSignal
from pretrain.heartbeat import STEP, Heartbeat
from pretrain.loss_record import LossRecord, in_global_batch
from pretrain.multi_round import MultiRound
from pretrain.phase_times import PhaseTimes, StragglerWatch
from pretrain.run_status import FAILED, RunStatus
from pretrain.telemetry import Telemetry
from pretrain.throughput import Throughput, peak_tflops
from pretrain.validation import validate


class Outcome(Enum):
    """How a pass through the loop ended."""

    FINISHED = "finished"
    STOPPED = "stopped"
    ROLLED_BACK = "rolled back"


class Step(NamedTuple):
    """What one optimizer step reports, the same on every rank."""

    loss: float
    """Mean over the global batch."""
    weight: float
    """What the sum was divided by."""
    metrics: dict[str, float]
    """The task's own."""
    applied: bool
    """Whether the update was applied; False where gradients were non-finite."""
    samples_2B: np.ndarray
    """Summed loss and weight of each sample of the global batch, where samples are recorded; else empty."""


class Trainer:
    """One run, from configuration to last checkpoint."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.task = config, config.task
        self.directory = Path(config.output)
        self.world: World = initialise_world(config.distributed.timeout_seconds)
        self.status = RunStatus(self.directory, config.total_steps, self.world.size, self.world.is_main)
        self.heartbeat = Heartbeat(self.world, config.distributed, self.directory, self.status)
        # Everything that can be wrong with data and sizes fails here, before anything is allocated.
        sources, weights = self.task.training_sources()
        self.validation = self.task.validation_sources()
        self.source = Mixture(sources, weights)
        self.order = RoundsOrder([len(s) for s in sources], config.batch.size, config.seed, weights)
        accumulation_steps(config, self.world.size)
        # Taken before a model is built, which may complete the task's configuration.
        self.fixed_identity = {"data": self.source.identity(), "task": self.task.identity()}
        self.checkpoints = Checkpoints(self.directory, config.checkpoint, self.world)
        self.telemetry = Telemetry(
            self.directory, config.telemetry, config.total_steps, self.world.is_main, self.status
        )
        self.rounds = MultiRound(config, self.order, self.source, self.world, self.telemetry)
        samples = config.rounds.count > 1 and (config.rounds.unit, config.rounds.loss_source) == ("sample", "log")
        self.batch_change = ""
        """What is to be logged about a change of the global batch."""
        self.record = LossRecord(self.directory, samples, self.world.is_main)
        self.guard = DivergenceGuard(config.guards)
        self.phases, self.stragglers = PhaseTimes(self.world.device), StragglerWatch(config.telemetry.straggler_ratio)
        dtype = torch.bfloat16 if resolve_precision(config) == "bf16" else torch.float32
        measured, self.peak_source = peak_tflops(self.world.device, dtype)
        self.units, self.unit = self.task.units_per_sample()
        self.throughput = Throughput(
            self.units, self.task.flops_per_sample(), config.telemetry.peak_tflops or measured, self.world.size
        )

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
        with StopSignal(launched=self.world.size > 1) as stop, self.heartbeat:
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
        overdue = False
        self.heartbeat.enter(STEP, position.step)
        for batches in self.throughput.awaiting(self._loader(position, last)):
            self.throughput.start()
            rate = engine.set_learning_rate(self.rounds.factor(number, position.step))
            step = self._step(engine, batches, position)
            self.record.add(position.data_step, step.loss, step.weight, step.samples_2B)
            verdict = self.guard.look(position.data_step, step.applied, step.loss)
            position.step, position.data_step = position.step + 1, position.data_step + 1
            position.skipped += not step.applied
            position.non_finite, position.spikes = self.guard.non_finite, self.guard.spikes
            self.throughput.stop(config.batch.size)
            self.phases.step(self.throughput.waited)
            done = position.step == last

            if verdict.event is not None:
                telemetry.event(position.step, *verdict.event)
            if verdict.give_up:
                raise TrainingDiverged(verdict.give_up)
            if verdict.roll_back:
                return self._roll_back(position)
            if position.step % config.telemetry.every == 0 or done:
                self._log(position, step, rate, engine.gradient_norm, self.rounds.label(number))
            else:
                telemetry.advance()
            if position.step % config.validation.every == 0 or done:
                self._validate(engine, position)
            for hook in config.hooks:
                if position.step % hook.every == 0 or done:
                    self._evaluate(engine, position, hook)
            stopping = bool(self.world.sum([float(stop.received is not None)])[0])
            due = overdue or stopping or position.step % config.checkpoint.every == 0
            overdue = due and self.guard.watching
            if (due and not overdue) or done:
                self.heartbeat.enter("checkpoint", position.step)
                self.record.flush()
                self.checkpoints.save(engine, position, self._identity())
            if stopping:
                saved = "not saved, because the loss is in doubt" if overdue else "saved"
                asked = stop.received or "another rank was stopped"
                telemetry.event(position.step, "signal", f"{asked}: {saved}, leaving")
                return Outcome.STOPPED
            self.heartbeat.enter(STEP, position.step)
        return Outcome.FINISHED

    def _step(self, engine: Engine, batches: list[Batch], position: Position) -> Step:
        """One optimizer step over this rank's micro-batches."""
        # DeepSpeed averages over ranks and micro-batches; scaling by the step's own weight makes that an exact mean.
        (weight,) = self.world.sum([sum(self.task.weight(batch) for batch in batches)])
        scale = self.world.size * len(batches) / max(weight, 1.0)
        torch.manual_seed(((self.config.seed << 32) + (position.data_step << 12) + self.world.rank) % 2**63)
        totals: list[torch.Tensor] = []
        samples: list[torch.Tensor] = []
        metrics: dict[str, torch.Tensor] = {}
        applied = True
        for batch in batches:
            with self.phases.during("forward"):
                output = engine.wrapped({name: tensor.to(self.world.device) for name, tensor in batch.items()})
            with self.phases.during("backward"):
                engine.backward(output.total * scale)
            with self.phases.during("update"):
                applied = engine.update()
            totals.append(output.total.detach())
            if self.record.samples:
                samples.append(torch.stack([output.per_sample, output.per_sample_weight]).double())
            for name, value in output.metrics.items():
                metrics[name] = metrics.get(name, 0.0) + value.detach() / len(batches)
        names = sorted(metrics)
        values = [float(sum(totals)), *(float(metrics[name]) for name in names)]
        loss, *rest = self.world.sum([*values, *in_global_batch(samples, self.world)])
        means = {name: mean / self.world.size for name, mean in zip(names, rest, strict=False)}
        samples_2B = np.array(rest[len(names) :]).reshape(2, -1)
        return Step(loss / max(weight, 1.0), weight, means, applied, samples_2B)

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
            change = self._resume_sizes(saved)
            self.checkpoints.load(engine, saved, self._identity())
            if change:
                self.order.resize(position.data_step, self.config.batch.size)
        if resume_from is not None:
            position.data_step, position.non_finite, position.spikes = resume_from, 0, 0
        return position

    def _resume_sizes(self, saved: Saved) -> bool:
        """Gives the order the global batches of a checkpoint; returns whether they are to change from there on.

        Raises:
            ConfigurationError: they would, but it was not asked for, or the run has several rounds.
        """
        then, now = saved.meta["identity"]["order"], self.config.batch.size
        self.order.restart(then["batch_size"], then.get("batch_changes", []))
        before = self.order.batch_size
        if before == now:
            return False
        if not self.config.batch.allow_change:
            raise ConfigurationError(
                f"batch.size is {now}, but {saved.path} was written with {before}; use that again, or set "
                f"batch.allow_change to continue with batches of {now} from here on"
            )
        if self.config.rounds.count > 1:
            raise ConfigurationError(
                f"batch.size is {now}, but {saved.path} was written with {before}, and in a run of several rounds it "
                "cannot change: later rounds serve what the first one served"
            )
        self.batch_change = f"{before} -> {now} samples from batch {saved.position.data_step} on"
        return True

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
        batch = {name: tensor.to(self.world.device) for name, tensor in self.task.collate(samples).items()}
        engine.model.eval()
        task_rows = self.task.audit(engine.model, batch)
        engine.model.train()
        peak = f"{self.throughput.peak_tflops:.3f} TFLOP/s per rank ({self.peak_source})"
        rows = audit(self.config, engine, self.world, position, task_rows | self.rounds.describe(), peak)
        if self.world.is_main:
            self.telemetry.say(publish(rows, self.directory))
        if position.step:
            self.telemetry.event(position.step, "resume", f"data continues at batch {position.data_step}")
        if self.batch_change:
            self.telemetry.event(position.step, "batch size", self.batch_change)
            self.batch_change = ""

    def _log(self, position: Position, step: Step, rate: float, norm: float, label: dict[str, int]) -> None:
        rates = self.throughput.read(self.unit)
        spreads = self.phases.read(self.world)
        if straggler := self.stragglers.look(spreads, self.world, time.monotonic()):
            self.telemetry.event(position.step, "straggler", straggler)
        consumed = {self.unit: self.order.position(position.data_step) * self.units}
        self.telemetry.row(
            "train",
            position.step,
            loss=step.loss,
            lr=rate,
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
        if losses:
            mean = sum(losses.values()) / len(losses)
            row = {"loss": mean, **{f"loss/{name}": value for name, value in losses.items()}, **derived}
            self.telemetry.row("valid", position.step, **row)
            shown = ", ".join(f"{name} {value:.4f}" for name, value in row.items())
            self.telemetry.say(f"step {position.step}: validation: {shown}")

    def _evaluate(self, engine: Engine, position: Position, hook: Any) -> None:
        self.heartbeat.enter("evaluation", position.step)
        model = engine.model
        model.eval()
        with torch.no_grad():
            results = hook(
                step=position.step, model=model, run_directory=self.directory, context=self.task.evaluation_context()
            )
        model.train()
        self.telemetry.row("eval", position.step, results=results)


def train(config: TrainConfig) -> Outcome:
    """Runs one configuration in this process (one rank of it). See `TrainConfig`."""
    return Trainer(config).run()
