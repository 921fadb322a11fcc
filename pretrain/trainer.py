"""The training loop, and around it only what every run needs, whatever it trains.

    Order.batch(t) -> Loader -> micro-batches -> TrainingStep (forward, backward, update) -> log, validate, save

A step is a pure function of (weights, optimizer state, seed, step): batches come from arithmetic, random draws are
seeded per step, learning rates are computed, so resuming is loading one checkpoint and one Position.
"""

from __future__ import annotations

import gc
import json
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from common.atomic_files import write_whole
from data_pipeline.loader import Loader
from data_pipeline.mixture import Mixture
from data_pipeline.round_order import RoundsOrder
from pretrain.arithmetic import set_arithmetic
from pretrain.audit import audit, publish
from pretrain.batch_change import sizes_to_resume_with
from pretrain.checkpoints.checkpoint import Checkpoints, Position
from pretrain.compilation import eager
from pretrain.config import TrainConfig
from pretrain.engine import Engine, accumulation_steps
from pretrain.errors import TrainingDiverged
from pretrain.guards import REPLAYED, DivergenceGuard, Verdict
from pretrain.launchers import Launcher, find_launcher
from pretrain.monitor import Monitor, peak_of_rank
from pretrain.monitoring.status_file import FAILED
from pretrain.precision import resolve_precision
from pretrain.ranks.agreement import agree_on_data, check_shared_output
from pretrain.ranks.heartbeat import STEP
from pretrain.ranks.world import World, initialise_world
from pretrain.rounds.loss_record import LossRecord
from pretrain.rounds.multi_round import MultiRound
from pretrain.speed_choice import settle
from pretrain.stop_signal import StopSignal
from pretrain.tasks.facts import write_facts
from pretrain.training_step import Step, TrainingStep, with_next
from pretrain.transfers import on_device
from pretrain.validation import validate_all


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
        self.monitor = Monitor(config, self.world, self.launcher)
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
        self.rounds = MultiRound(config, self.order, self.source, self.world, self.monitor.telemetry)
        samples = config.rounds.count > 1 and (config.rounds.unit, config.rounds.loss_source) == ("sample", "log")
        self.record = LossRecord(self.directory, samples, self.world.is_main)
        self.guard = DivergenceGuard(config.guards)
        peak = peak_of_rank(config, self.world.device)
        self.choice = settle(config, self.world, peak.tflops)
        self.config = self.choice.applied(config)
        if resolve_precision(config) != self.choice.precision:
            peak = peak_of_rank(self.config, self.world.device)
        self.monitor.measure_rates(self.task, peak)
        self.batch_change = ""
        """What is to be logged about a change of the global batch."""

    def run(self) -> Outcome:
        """Trains until the last step, a stop signal, or an error; rolls back where the guard says so."""
        try:
            outcome = self._run()
        except BaseException as error:
            self.monitor.status.end(FAILED, f"{type(error).__name__}: {error}")
            raise
        self.monitor.status.end(outcome.value)
        return outcome

    def _run(self) -> Outcome:
        resume_from: int | None = None
        with StopSignal(self.launcher) as stop, self.monitor.heartbeat:
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
        self.monitor.enter("start", 0)
        engine = Engine(self.config, self.task, self.world)
        position = self._restore(engine, resume_from)
        self._describe()
        self.monitor.status.update(first_step=position.step)
        self.monitor.telemetry.open(position.step)
        try:
            self._audit(engine, position)
            if self.config.validation.at_start and position.step == 0:
                self._validate(engine, position)
            outcome = self._all_rounds(engine, position, stop)
        except BaseException:
            self.monitor.telemetry.close()
            if self.world.size == 1:  # of several, the others may wait in a collective, and this one for them
                engine.close()
            raise
        self.monitor.telemetry.close()
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
            self.monitor.enter("rescoring", position.step)
            if not self.rounds.close(number, engine, saved, stop):
                return Outcome.STOPPED
            self._describe()
        return Outcome.FINISHED

    def _loop(self, engine: Engine, position: Position, stop: StopSignal, number: int) -> Outcome:
        """The loop of round `number`. `position` moves with it."""
        config, monitor, last = self.config, self.monitor, self.rounds.last(number)
        take_step = TrainingStep(engine, config, self.world, monitor.phases, self.record.samples)
        overdue = False
        monitor.enter(STEP, position.step)
        for batches, coming in with_next(monitor.awaiting(self._loader(position, last))):
            monitor.begin()
            moving = engine.set_hyperparameters(self.rounds.hyperparameters(number, position.step))
            step = take_step(batches, coming, position.data_step, stop)
            verdict = self._account(position, step)
            monitor.end(position.step, self.order.batch_size_at(position.data_step - 1), len(batches))
            done = position.step == last

            if verdict.event is not None:
                monitor.event(position.step, *verdict.event)
            if verdict.give_up:
                raise TrainingDiverged(verdict.give_up)
            if verdict.roll_back:
                return self._roll_back(position)
            if monitor.is_due(position.step) or done:
                values = {**moving, "grad_norm": engine.gradient_norm}
                consumed = self.order.position(position.data_step)
                monitor.log(position.step, step, values, consumed, self.rounds.label(number))
            else:
                monitor.advance()
            # A signal may have come in the minutes that an evaluation takes.
            stopping = self._look_from_outside(engine, position, done, stop) or step.stopping
            due = overdue or stopping or position.step % config.checkpoint.every == 0
            overdue = due and self.guard.watching
            if (due and not overdue) or done:
                monitor.enter("checkpoint", position.step)
                self.record.flush()
                self.checkpoints.save(engine, position, self._identity())
                monitor.saved(position.step)
            if stopping:
                saved = "not saved, because the loss is in doubt" if overdue else "saved"
                asked = stop.received or "another rank was stopped"
                monitor.event(position.step, "signal", f"{asked}: {saved}, leaving")
                return Outcome.STOPPED
            monitor.enter(STEP, position.step)
        return Outcome.FINISHED

    def _account(self, position: Position, step: Step) -> Verdict:
        """Moves `position` over a step that was taken; returns what the guard thinks of its loss."""
        self.record.add(position.data_step, step.loss, step.weight, step.samples_2B)
        verdict = self.guard.look(position.data_step, step.applied, step.loss)
        position.step, position.data_step = position.step + 1, position.data_step + 1
        position.skipped += not step.applied
        position.non_finite, position.spikes = self.guard.non_finite, self.guard.spikes
        return verdict

    def _look_from_outside(self, engine: Engine, position: Position, done: bool, stop: StopSignal) -> bool:
        """Validation and evaluations that are due now; returns whether any rank was told to stop meanwhile."""
        validating = position.step % self.config.validation.every == 0 or done
        if validating:
            self._validate(engine, position)
        hooks = [hook for hook in self.config.hooks if position.step % hook.every == 0 or done]
        for hook in hooks:
            self._evaluate(engine, position, hook)
        return bool((validating or hooks) and self.world.sum([float(stop.received is not None)])[0])

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
            change = sizes_to_resume_with(self.order, self.config, saved)
            self.checkpoints.load(engine, saved, self._identity())
            if change is not None:
                self.batch_change = change.words
                self.order.resize_from(position.data_step, change.sizes)
        if resume_from is not None:
            position.data_step, position.non_finite, position.spikes = resume_from, 0, 0
        return position

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
        self.monitor.event(position.step, "rollback", f"to the last checkpoint; data continues at {position.data_step}")
        return Outcome.ROLLED_BACK

    def _describe(self) -> None:
        """Writes what `replay` and the reports need to know about the run's data."""
        if self.world.is_main:
            order = self.order.identity() | self.task.replay_description()
            content = json.dumps(order, indent=1, ensure_ascii=False)
            write_whole(self.directory / "order.json", content)
            write_facts(self.task, self.directory)

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
        rows = audit(self.config, engine, self.world, position, task_rows, self.monitor.peak)
        if self.world.is_main:
            self.monitor.say(publish(rows, self.directory))
        if position.step:
            self.monitor.event(position.step, "resume", f"data continues at batch {position.data_step}")
        if self.batch_change:
            self.monitor.event(position.step, "batch size", self.batch_change)
            self.batch_change = ""

    def _validate(self, engine: Engine, position: Position) -> None:
        self.monitor.enter("validation", position.step)
        if row := validate_all(engine, self.validation, self.world, self.config):
            self.monitor.row("valid", position.step, **row)
            shown = ", ".join(f"{name} {value:.4f}" for name, value in row.items())
            self.monitor.say(f"step {position.step}: validation: {shown}")

    def _evaluate(self, engine: Engine, position: Position, hook: Any) -> None:
        self.monitor.enter("evaluation", position.step)
        model = engine.model
        model.eval()
        with torch.no_grad(), eager(model):
            results = hook(
                step=position.step, model=model, run_directory=self.directory, context=self.task.evaluation_context()
            )
        model.train()
        self.monitor.row("eval", position.step, results=results)


def train(config: TrainConfig, launcher: Launcher | None = None) -> Outcome:
    """Runs one configuration in this process (one rank of it). See `TrainConfig`.

    Args:
        config: of the run.
        launcher: who started this process as a rank, where that was found out before; the run ends when that ends.
    """
    return Trainer(config, launcher).run()
