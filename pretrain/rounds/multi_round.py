"""Several rounds over the data: when each begins, what it serves, and what happens between two of them.

    round 1 (`steps` steps)  ->  ledger: loss of every unit  ->  choice  ->  round 2 (round(keep * steps) steps)  -> ...

Method: docs/methods/tiny_lm.md: rounds. The losses are those of the model frozen at the end of a round, on everything
that round 1 saw, so every later round chooses from all of round 1's data. With `loss_source: log` they are the newest
that training recorded of each unit. A ledger and a selection are files: once written they are read again, never made
anew, unless the model they were made from is another one. What it costs: one forward pass over round 1's data per
later round.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.atomic_files import write_whole
from data_pipeline.round_order import RoundsOrder, Selection, first_visits, selection_path
from data_pipeline.source import Source
from pretrain.checkpoints.checkpoint import Position, Saved
from pretrain.config import TrainConfig
from pretrain.engine import Engine
from pretrain.errors import ConfigurationError
from pretrain.monitoring.telemetry import Telemetry
from pretrain.ranks.world import World
from pretrain.rounds.ledger import Ledger, LossFile, unit_means
from pretrain.rounds.loss_record import record_file
from pretrain.rounds.selection import Choice, choose, gumbel_seed
from pretrain.schedule import Hyperparameters
from pretrain.scoring import score_samples
from pretrain.stop_signal import StopSignal

CHUNK_BATCHES = 8
"""Global batches that are rescored between two writes; a kill loses at most these."""
DECISIVE = ("keep", "unit", "loss_source", "scope", "selection")
"""Fields of RoundsConfig that decide which units a round gets."""


class MultiRound:
    """The rounds of one run. Rounds are numbered from 1; `order` grows by one selection per later round."""

    def __init__(
        self,
        config: TrainConfig,
        order: RoundsOrder,
        source: Source,
        world: World,
        telemetry: Telemetry,
    ) -> None:
        self.config, self.rounds, self.run = config, config.rounds, Path(config.output)
        self.order, self.source, self.world, self.telemetry = order, source, world, telemetry

    def first(self, number: int) -> int:
        """Optimizer steps done when round `number` begins."""
        return 0 if number == 1 else self.config.steps + (number - 2) * self.config.later_steps

    def last(self, number: int) -> int:
        """Optimizer steps done when round `number` ends."""
        return self.first(number + 1)

    def number(self, step: int) -> int:
        """The round that a run with `step` steps behind it is in; at its very end still that round."""
        return 1 if step <= self.config.steps else 2 + (step - self.config.steps - 1) // self.config.later_steps

    def begin_data(self, number: int) -> int:
        """Data step at which round `number` begins; known once it has begun."""
        return 0 if number == 1 else self.order.later[number - 2].first_step

    def hyperparameters(self, number: int, step: int) -> Hyperparameters:
        """What holds at `step` of the run, in round `number`; momentum, which rounds do not reset, warms up once."""
        first, last = 0, self.config.total_steps
        if self.rounds.schedule == "fresh":
            first, last = self.first(number), self.last(number)
        at, optimizer = (step - first, last - first), self.config.optimizer
        rate = self.config.schedule.factor(*at)
        return Hyperparameters(rate, optimizer.decay_factor(*at, rate), optimizer.momentum(step))

    def label(self, number: int) -> dict[str, int]:
        """What a telemetry row says about the round: nothing where there is only one."""
        return {"round": number} if self.rounds.count > 1 else {}

    def describe(self) -> dict[str, str]:
        """A row of the audit table, where there is more than one round."""
        if self.rounds.count == 1:
            return {}
        rounds = self.rounds
        by = "at random" if rounds.selection == "uniform" else f"by loss ({rounds.loss_source})"
        scope = "from all at once" if rounds.scope == "global" else f"from each of {rounds.parts} parts"
        lengths = " + ".join(str(self.last(n) - self.first(n)) for n in range(1, rounds.count + 1))
        return {"rounds": f"{lengths} steps; {rounds.unit} units {by}, {scope}; {rounds.schedule} schedule"}

    def reopen(self, position: Position, begun: Sequence[Mapping[str, Any]]) -> None:
        """Brings the order to the round of a checkpoint, or clears what another run left when starting afresh.

        Args:
            position: of the checkpoint.
            begun: what the checkpoint's identity says about the rounds after the first.

        Raises:
            ConfigurationError: the configuration has changed in what decided these rounds.
            OrderError: the selection of a round cannot be read.
        """
        self.order.later.clear()
        if position.data_step == 0:
            if self.world.is_main:
                shutil.rmtree(self.run / "rounds", ignore_errors=True)
            return
        if position.step > self.config.total_steps:
            raise ConfigurationError(
                f"steps is {self.config.steps}, but {self.run} is at step {position.step} already; ask for more "
                "steps (or rounds), or choose another output"
            )
        if self.number(position.step) != len(begun) + 1:
            raise ConfigurationError(
                f"steps is {self.config.steps} and rounds.keep {self.rounds.keep}: that puts step {position.step} into "
                f"round {self.number(position.step)}, but {self.run} is in round {len(begun) + 1} there; use its own "
                "values again, or choose another output"
            )
        for number in range(2, len(begun) + 2):
            selection = Selection.load(selection_path(self.run, number))
            for name, now in self._settings(number - 1)["asked"].items():
                if (then := selection.settings["asked"][name]) != now:
                    raise ConfigurationError(
                        f"{name} is {now!r}, but round {number} of {self.run} was chosen with {then!r}; use that "
                        "again, or choose another output"
                    )
            self.order.add(selection)

    def close(self, number: int, engine: Engine, saved: Saved | None, stop: StopSignal) -> bool:
        """After the last step of round `number`: its ledger, and the units of the next round, which join the order.

        Args:
            number: the round that has ended.
            engine: with the model at the end of that round.
            saved: the checkpoint of that moment, on rank 0.
            stop: looked at while rescoring.

        Returns:
            False if a stop signal ended the rescoring; what is done of it is kept. Collective.
        """
        path = selection_path(self.run, number + 1)
        settings = self._settings(number) | {"weights": saved.weights if saved else ""}
        kept = _selection_with(path, settings) if self.world.is_main else None
        if not self._on_main(kept is not None):
            data_steps = self._on_main(saved.position.data_step if saved else 0)
            if not self._make_ledger(number, engine, data_steps, settings["weights"], stop):
                return False
            if self.world.is_main:
                kept = self._choose(number, data_steps, settings)
                write_whole(path, kept.to_bytes())
        agreed = self.world.broadcast(np.array([]) if kept is None else np.append(kept.first_step, kept.units))
        self.order.add(Selection(number + 1, int(agreed[0]), self.rounds.unit, agreed[1:]))
        return True

    def _on_main(self, value: int) -> int:
        """Rank 0's value on every rank. Collective."""
        return int(self.world.sum([float(value if self.world.is_main else 0)])[0])

    def _settings(self, number: int) -> dict[str, Any]:
        """What decides the choice after round `number`, besides the model; `asked` by the names of the fields."""
        asked = {f"rounds.{name}": asdict(self.rounds)[name] for name in DECISIVE} | {"steps": self.config.steps}
        asked["rounds.parts"] = self.rounds.parts if self.rounds.scope == "part" else 1
        return {"asked": asked, "gumbel_seed": gumbel_seed(self.config.seed, number + 1)}

    def _ledger_path(self, number: int) -> Path:
        return self.run / "rounds" / f"round_{number}.safetensors"

    def _seen(self, data_steps: int) -> int:
        """Global batches that round 1 took, at the end of a round whose data ended at `data_steps`."""
        return self.begin_data(2) if self.order.later else data_steps

    def _make_ledger(self, number: int, engine: Engine, data_steps: int, weights: str, stop: StopSignal) -> bool:
        """Sees to it that the ledger after round `number` is on disk; False if stopped before. Collective."""
        path, rounds = self._ledger_path(number), self.rounds
        origin = {"round": number, "unit": rounds.unit, "loss_source": rounds.loss_source, "weights": weights}
        if self._on_main(self.world.is_main and _has_origin(path, origin)):
            return True
        seen = self._seen(data_steps)
        ids_N = np.arange(seen) if rounds.unit == "batch" else first_visits(self.order, seen)[0]
        partial = LossFile(path.with_name(f"round_{number}.{rounds.unit}.{weights[:16]}.partial"))
        if rounds.loss_source == "frozen" and not self._rescore(number, engine, ids_N, partial, stop):
            return False
        if self.world.is_main:
            losses = partial.read(0, ids_N.size) if rounds.loss_source == "frozen" else None
            ledger = Ledger(ids_N, *losses, origin) if losses else self._from_log(number, data_steps, ids_N, origin)
            ledger.save(path)
            for leftover in path.parent.glob(f"round_{number}.*.partial"):
                leftover.unlink()
        return True

    def _from_log(self, number: int, data_steps: int, ids_N: np.ndarray, origin: Mapping[str, Any]) -> Ledger:
        """The newest loss that training recorded of every unit: of this round, else of the ledger before it."""
        if number == 1:
            unknown_N, none_N = np.full(ids_N.size, np.nan, np.float32), np.zeros(ids_N.size, np.float32)
            before = Ledger(ids_N, unknown_N, none_N, origin)
        else:
            before = replace(Ledger.load(self._ledger_path(number - 1)), origin=origin)
        steps = range(self.begin_data(number), data_steps)
        served_K = np.concatenate([self.order.units(step, self.rounds.unit) for step in steps])
        return before.updated(served_K, *record_file(self.run, number, self.rounds.unit).read(0, served_K.size))

    def _rescore(self, number: int, engine: Engine, ids_N: np.ndarray, partial: LossFile, stop: StopSignal) -> bool:
        """Fills `partial` with the losses of all units under the frozen model; False if stopped. Collective."""
        world, unit_size = self.world, self.order.batch_size if self.rounds.unit == "batch" else 1
        per_chunk = CHUNK_BATCHES * self.order.batch_size // unit_size
        done = self._on_main(len(partial))
        first = begun = ids_N.size if done >= ids_N.size else done // per_chunk * per_chunk
        started = time.perf_counter()
        progress = self.telemetry.bar(ids_N.size * unit_size, first * unit_size, "sample", f"rescoring round {number}")
        with progress, engine.evaluating() as module:
            while first < ids_N.size:
                if world.sum([float(stop.received is not None)])[0]:
                    self.telemetry.say(f"rescoring stopped at {first:,} of {ids_N.size:,} units; continues from there")
                    return False
                samples = ids_K = ids_N[first : first + per_chunk]
                if self.rounds.unit == "batch":
                    samples = np.concatenate([self.order.first_round(batch) for batch in ids_K.tolist()])
                scores = score_samples(module, engine.task, self.source, samples, world, self.config.batch.micro_size)
                if world.is_main:
                    partial.write(first, *unit_means(scores.losses_N, scores.weights_N, unit_size))
                first += ids_K.size
                progress.update(samples.size)
        if scored := (ids_N.size - begun) * unit_size:
            seconds, (units, name) = time.perf_counter() - started, engine.task.units_per_sample()
            rates = {"seconds_rescoring": round(seconds, 3), f"{name}_per_second": scored * units / seconds}
            self.telemetry.row("rescoring", self.last(number), samples=scored, **self.label(number), **rates)
        return True

    def _choose(self, number: int, data_steps: int, settings: Mapping[str, Any]) -> Selection:
        """Rank 0: the units of round `number + 1`, drawn from the ledger."""
        rounds, ledger = self.rounds, Ledger.load(self._ledger_path(number))
        count, visits_N = self.config.later_steps, np.ones(ledger.ids_N.size, np.int64)
        if rounds.unit == "sample":
            seen = self._seen(data_steps)
            visits_N = first_visits(self.order, seen)[1]
            count = max(1, round(ledger.ids_N.size * self.config.later_steps / seen))
        choice = choose(
            ledger.losses_N,
            count,
            seed=settings["gumbel_seed"],
            parts=rounds.parts if rounds.scope == "part" else 1,
            uniform=rounds.selection == "uniform",
        )
        self._report(number, choice, ledger)
        units = np.sort(np.repeat(ledger.ids_N[choice.chosen_K], visits_N[choice.chosen_K]))
        return Selection(number + 1, data_steps, rounds.unit, units, settings)

    def _report(self, number: int, choice: Choice, ledger: Ledger) -> None:
        """Logs how selective the choice is."""
        unit = {"batch": "batches", "sample": "samples"}[self.rounds.unit]
        self.telemetry.row(
            "round", self.last(number), round=number, units=ledger.ids_N.size, chosen=choice.chosen_K.size,
            excluded=choice.excluded, loss=choice.mean, std=choice.std, chosen_loss=choice.chosen_mean,
            shift=choice.shift, gumbel_seed=gumbel_seed(self.config.seed, number + 1),
        )  # fmt: skip
        without = f"; {choice.excluded} without a finite loss cannot be chosen" if choice.excluded else ""
        self.telemetry.say(
            f"round {number}: {ledger.ids_N.size:,} {unit}, mean loss {choice.mean:.4f}, std {choice.std:.4f}; "
            f"round {number + 1} gets {choice.chosen_K.size:,} of them with mean {choice.chosen_mean:.4f}, "
            f"{choice.shift:+.2f} std{without}"
        )


def _has_origin(path: Path, origin: Mapping[str, Any]) -> bool:
    """Whether there is a ledger at `path` that was made from this."""
    return path.is_file() and Ledger.load(path).origin == origin


def _selection_with(path: Path, settings: Mapping[str, Any]) -> Selection | None:
    """The selection stored at `path` if it was made under `settings`, else None."""
    if not path.is_file():
        return None
    selection = Selection.load(path)
    return selection if selection.settings == settings else None
