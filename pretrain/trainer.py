"""The training loop, and around it only what every run needs, whatever it trains.

    Order.batch(t) -> Loader -> micro-batches -> Task.loss -> engine.backward -> engine.update -> log, validate, save

A step is a pure function of (weights, optimizer state, seed, step): batches come from arithmetic, random draws are
seeded per step, learning rates are computed, so resuming is loading one checkpoint and one Position.
"""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from data_pipeline import Batch, Loader, Mixture, Order
from pretrain.audit import audit, publish
from pretrain.checkpoint import Checkpoints, Position
from pretrain.config import TrainConfig
from pretrain.distributed import World, initialise_world
from pretrain.engine import Engine, accumulation_steps, resolve_precision
from pretrain.errors import ConfigurationError, TrainingDiverged
from pretrain.guards import NonFiniteGuard, StopSignal
from pretrain.telemetry import Telemetry
from pretrain.throughput import Throughput, peak_tflops
from pretrain.validation import mean_loss


class Outcome(Enum):
    """How a pass through the loop ended."""

    FINISHED = "finished"
    STOPPED = "stopped"
    ROLLED_BACK = "rolled back"


class Trainer:
    """One run, from configuration to last checkpoint."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.task = config, config.task
        self.directory = Path(config.output)
        # Everything that can be wrong with data and sizes fails here, before anything is allocated.
        sources, weights = self.task.training_sources()
        self.validation = self.task.validation_sources()
        self.source = Mixture(sources, weights)
        self.order = Order([len(s) for s in sources], config.batch.size, config.seed, weights)
        self.world: World = initialise_world()
        accumulation_steps(config, self.world.size)
        identity = {"data": self.source.identity(), "task": self.task.identity(), "order": self.order.identity()}
        identity = json.loads(json.dumps(identity))  # as it will be read back
        self.checkpoints = Checkpoints(self.directory / "checkpoints", config.checkpoint, self.world, identity)
        self.telemetry = Telemetry(self.directory, config.telemetry, config.steps, self.world.is_main)
        self.guard = NonFiniteGuard(config.guards)
        dtype = torch.bfloat16 if resolve_precision(config) == "bf16" else torch.float32
        measured, self.peak_source = peak_tflops(self.world.device, dtype)
        self.units, self.unit = self.task.units_per_sample()
        self.throughput = Throughput(
            self.units, self.task.flops_per_sample(), config.telemetry.peak_tflops or measured, self.world.size
        )

    def run(self) -> Outcome:
        """Trains until the last step, a stop signal, or an error; rolls back where the guard says so."""
        if self.world.is_main:
            self._describe()
        resume_from: int | None = None
        with StopSignal() as stop:
            while True:
                engine = Engine(self.config, self.task, self.world)
                position = self._restore(engine, resume_from)
                self.telemetry.open(position.step)
                try:
                    outcome = self._loop(engine, position, stop)
                finally:
                    self.telemetry.close()
                    engine.close()
                if outcome is not Outcome.ROLLED_BACK:
                    return outcome
                resume_from = position.data_step

    def _loop(self, engine: Engine, position: Position, stop: StopSignal) -> Outcome:
        """The loop. `position` moves with it."""
        config, telemetry, last = self.config, self.telemetry, self.config.steps
        loader = self._loader(position)
        self._audit(engine, position)
        for batches in loader:
            self.throughput.start()
            factor = config.schedule.factor(position.step, last)
            rate = engine.set_learning_rate(factor)
            loss, metrics, applied = self._step(engine, batches, position)
            position.step, position.data_step = position.step + 1, position.data_step + 1
            position.skipped += not applied
            self.throughput.stop(config.batch.size)
            done = position.step == last

            if not applied:
                telemetry.event(position.step, "skip", f"non-finite gradients in batch {position.data_step - 1}")
            if self.guard.must_roll_back(applied):
                return self._roll_back(position)
            if position.step % config.telemetry.every == 0 or done:
                self._log(position, loss, metrics, rate, engine.gradient_norm)
            else:
                telemetry.advance()
            if position.step % config.validation.every == 0 or done:
                self._validate(engine, position)
            for hook in config.hooks:
                if position.step % hook.every == 0 or done:
                    self._evaluate(engine, position, hook)
            stopping = bool(self.world.sum([float(stop.received is not None)])[0])
            if position.step % config.checkpoint.every == 0 or done or stopping:
                self.checkpoints.save(engine, position)
            if stopping:
                telemetry.event(
                    position.step, "signal", f"{stop.received or 'another rank was stopped'}: saved, leaving"
                )
                return Outcome.STOPPED
        return Outcome.FINISHED

    def _step(self, engine: Engine, batches: list[Batch], position: Position) -> tuple[float, dict[str, float], bool]:
        """One optimizer step over this rank's micro-batches: (mean loss, metrics, whether it was applied)."""
        # DeepSpeed averages over ranks and micro-batches; scaling by the step's own weight makes that an exact mean.
        (weight,) = self.world.sum([sum(self.task.weight(batch) for batch in batches)])
        scale = self.world.size * len(batches) / max(weight, 1.0)
        torch.manual_seed(((self.config.seed << 32) + (position.data_step << 12) + self.world.rank) % 2**63)
        totals: list[torch.Tensor] = []
        metrics: dict[str, torch.Tensor] = {}
        applied = True
        for batch in batches:
            output = engine.wrapped({name: tensor.to(self.world.device) for name, tensor in batch.items()})
            engine.backward(output.total * scale)
            applied = engine.update()
            totals.append(output.total.detach())
            for name, value in output.metrics.items():
                metrics[name] = metrics.get(name, 0.0) + value.detach() / len(batches)
        names = sorted(metrics)
        loss, *means = self.world.sum([float(sum(totals)), *(float(metrics[name]) for name in names)])
        return loss / max(weight, 1.0), {n: m / self.world.size for n, m in zip(names, means, strict=True)}, applied

    def _loader(self, position: Position) -> Loader:
        config = self.config
        return Loader(
            self.source,
            self.order,
            self.task.collate,
            rank=self.world.rank,
            world_size=self.world.size,
            micro_batch_size=config.batch.micro_size,
            start_step=position.data_step,
            stop_step=position.data_step + config.steps - position.step,
            num_workers=config.loader.workers,
            prefetch=config.loader.prefetch,
            pin_memory=self.world.device.type == "cuda",
        )

    def _restore(self, engine: Engine, resume_from: int | None) -> Position:
        """The position to start from; after a rollback the data continues at `resume_from`."""
        wanted = self.config.checkpoint.resume or resume_from is not None
        position = (self.checkpoints.load(engine) if wanted else None) or Position()
        if resume_from is not None:
            position.data_step = resume_from
        if position.step > self.config.steps:
            raise ConfigurationError(
                f"steps is {self.config.steps}, but {self.directory} is at step {position.step} already; ask for more "
                "steps, or choose another output"
            )
        return position

    def _roll_back(self, position: Position) -> Outcome:
        """Announces a rollback; the caller reloads the checkpoint and steps over the batches since."""
        if self.checkpoints.find() is None:
            raise TrainingDiverged(
                f"gradients were non-finite in {self.config.guards.max_consecutive_skips} steps in a row before the "
                "first checkpoint; lower optimizer.lr or look at the data of these steps"
            )
        self.telemetry.event(
            position.step, "rollback", f"to the last checkpoint; data continues at {position.data_step}"
        )
        return Outcome.ROLLED_BACK

    def _describe(self) -> None:
        """Writes what `replay` and the reports need to know about the run's data."""
        self.directory.mkdir(parents=True, exist_ok=True)
        order = self.order.identity() | self.task.replay_description()
        (self.directory / "order.json").write_text(json.dumps(order, indent=1, ensure_ascii=False))

    def _audit(self, engine: Engine, position: Position) -> None:
        samples = [
            self.source.sample(int(i)) for i in self.order.batch(position.data_step)[: self.config.batch.micro_size]
        ]
        batch = {name: tensor.to(self.world.device) for name, tensor in self.task.collate(samples).items()}
        engine.model.eval()
        task_rows = self.task.audit(engine.model, batch)
        engine.model.train()
        peak = f"{self.throughput.peak_tflops:.3f} TFLOP/s per rank ({self.peak_source})"
        rows = audit(self.config, engine, self.world, position, task_rows, peak)
        if self.world.is_main:
            self.telemetry.say(publish(rows, self.directory))
        if position.step:
            self.telemetry.event(position.step, "resume", f"data continues at batch {position.data_step}")

    def _log(self, position: Position, loss: float, metrics: dict[str, float], rate: float, norm: float) -> None:
        rates = self.throughput.read(self.unit)
        consumed = position.step * self.config.batch.size * self.units
        self.telemetry.row(
            "train", position.step, loss=loss, lr=rate, grad_norm=norm, **metrics, **{self.unit: consumed}, **rates
        )
        speed = rates[f"{self.unit}_per_second"]
        self.telemetry.advance(loss=f"{loss:.3f}", **{f"{self.unit}/s": f"{speed:,.0f}"}, mfu=f"{rates['mfu']:.1%}")

    def _validate(self, engine: Engine, position: Position) -> None:
        losses: dict[str, float] = {}
        derived: dict[str, float] = {}
        for name, source in self.validation.items():
            losses[name] = mean_loss(
                engine, source, self.world, self.config.batch.micro_size, self.config.validation.samples
            )
            for metric, value in self.task.validation_metrics(name, losses[name]).items():
                derived[f"{metric}/{name}"] = value
        if losses:
            mean = sum(losses.values()) / len(losses)
            row = {"loss": mean, **{f"loss/{name}": value for name, value in losses.items()}, **derived}
            self.telemetry.row("valid", position.step, **row)
            shown = ", ".join(f"{name} {value:.4f}" for name, value in row.items())
            self.telemetry.say(f"step {position.step}: validation: {shown}")

    def _evaluate(self, engine: Engine, position: Position, hook: Any) -> None:
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
