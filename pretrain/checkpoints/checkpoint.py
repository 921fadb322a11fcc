"""Crash-safe checkpoints and exact resume.

    checkpoints/step_00000100/          complete: written under a temporary name, fsynced, then renamed
        model.safetensors config.json   the whole model, loadable without this run
        tokenizer/
        engine/                         DeepSpeed's own files: optimizer states and master weights of every rank
        meta.json                       position, identity of data and model, SHA-256 of every other file and of itself
    checkpoints/latest                  name of the newest one, replaced atomically
    checkpoints/whole_00000100_1f0c.../ made from engine/ when the run goes on with other ranks or at another ZeRO stage

A kill at any moment leaves either a complete directory or one that ends in `.tmp`, which nobody reads and the next save
removes. Resume takes the newest directory whose files match their checksums and says which ones it passed over. Every
rank hashes what it wrote, when saving, and a share of all files when resuming.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from common.atomic_files import fsync, publish, write_whole
from common.find_model import newest_checkpoints
from common.untrusted_files import typed
from data_pipeline.identity import explain_mismatch, fingerprint
from data_pipeline.order import MAX_STEP, BatchChanges, BatchSize
from pretrain.checkpoints.checksums import META_NAME, Sealed, check_files, file_hashes, read_sealed, seal
from pretrain.checkpoints.engine_files import check_engine_files, contained, recorded
from pretrain.checkpoints.resharding import restore
from pretrain.checkpoints.whole_state import WholeState, write_whole_state
from pretrain.config import CheckpointConfig
from pretrain.engine import Engine
from pretrain.errors import CheckpointError
from pretrain.ranks.world import World

logger = logging.getLogger(__name__)

ENGINE_TAG = "engine"
LATEST_NAME = "latest"
WHOLE = "whole"
FULL = 2**20
"""Bytes: a file system with less space than this is called full."""


@dataclass
class Position:
    """Where a run is: everything that changes from step to step outside of the engine."""

    step: int = 0
    """Optimizer steps done, skipped ones included."""
    data_step: int = 0
    """Global batches consumed; ahead of `step` by those that a rollback stepped over."""
    skipped: int = 0
    """Steps whose update was skipped because of non-finite gradients."""
    non_finite: int = 0
    """Of them, those in a row just now."""
    spikes: int = 0
    """Steps in a row just now whose loss is far above its course."""


@dataclass(frozen=True)
class CheckpointMeta(Sealed):
    """The fields of a checkpoint's meta.json."""

    step: Annotated[int, Ge(0), Le(MAX_STEP)]
    data_step: Annotated[int, Ge(0), Le(MAX_STEP)]
    skipped: Annotated[int, Ge(0), Le(MAX_STEP)]
    world_size: Annotated[int, Ge(1), Le(2**20)]
    zero_stage: Literal[0, 1, 2, 3]
    identity: dict[str, Any]
    non_finite: Annotated[int, Ge(0), Le(MAX_STEP)] = 0
    spikes: Annotated[int, Ge(0), Le(MAX_STEP)] = 0
    layout: str = ""


@dataclass(frozen=True)
class SavedOrder:
    """What of `identity.order` is read before it is compared."""

    batch_size: BatchSize
    batch_changes: BatchChanges = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint: where it is, and its meta.json."""

    path: Path
    meta: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Saved:
        """The checkpoint in a folder, its meta.json checked field by field; the other files are not looked at.

        Raises:
            CheckpointError: meta.json is missing or is not a checkpoint's.
        """
        meta = vars(read_sealed(path / META_NAME, CheckpointMeta))
        typed(SavedOrder, meta["identity"].get("order"), f"{path / META_NAME}: identity.order", CheckpointError)
        return cls(path, meta)

    @property
    def position(self) -> Position:
        """Where the run was."""
        return Position(**{entry.name: self.meta.get(entry.name, 0) for entry in fields(Position)})

    @property
    def weights(self) -> str:
        """Names the model by content: a fingerprint of everything but the engine's own files."""
        hashes: dict[str, str] = self.meta["sha256"]
        return fingerprint({name: value for name, value in hashes.items() if Path(name).parts[0] != ENGINE_TAG})


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, run: Path, config: CheckpointConfig, world: World) -> None:
        self.run, self.directory, self.config, self.world = run, run / "checkpoints", config, world

    def save(self, engine: Engine, position: Position, identity: dict[str, Any]) -> Path:
        """Writes one checkpoint. Collective: call on every rank.

        Args:
            engine: model and optimizer.
            position: where the run is.
            identity: data and model, which a continuation must share (JSON-able).

        Raises:
            CheckpointError: a file could not be written (a full disk, say); nothing incomplete stays behind.
        """
        final = self._at(position.step)
        temporary = final.with_suffix(".tmp")
        if self.world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.world.barrier()
        try:
            with recorded(engine.wrapped) as written:
                engine.wrapped.save_checkpoint(str(temporary), ENGINE_TAG, save_latest=False)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            # Others may be waiting in there for this rank: it cannot ask how they fared, and must not wait for them.
            raise self._failed(final, str(error) or type(error).__name__) from error
        state = engine.state_dict()
        hashes: dict[str, str] = {}
        failure = self._collectively(lambda: hashes.update(_settle(temporary, written)))
        if failure is None:
            known = {name: value for part in self.world.gather(hashes) for name, value in part.items()}
            failure = self._collectively(lambda: self._finish(engine, position, identity, state, known, temporary))
        if failure is not None:
            raise self._failed(final, failure)
        return final

    def _failed(self, final: Path, reason: str) -> CheckpointError:
        """The error of a checkpoint that could not be written; what there is of it goes."""
        free = shutil.disk_usage(self.directory).free
        if self.world.is_main:
            shutil.rmtree(final.with_suffix(".tmp"), ignore_errors=True)
        reason = f"its disk is full ({reason})" if free < FULL else reason  # torch's message does not say so
        return CheckpointError(
            f"{final}: checkpoint could not be written: {reason}. Earlier checkpoints are untouched."
        )

    def _collectively(self, action: Any) -> str | None:
        """Runs `action` here and returns what failed on any rank (None if nothing did)."""
        message = None
        try:
            action()
        except (OSError, RuntimeError) as error:
            message = str(error) or type(error).__name__
        failures = self.world.sum([float(message is not None)])[0]
        return message or ("another rank failed" if failures else None)

    def _at(self, step: int) -> Path:
        return self.directory / f"step_{step:08d}"

    def at(self, step: int) -> Saved:
        """The checkpoint of a step that is known to have been saved; not checked."""
        return Saved.read(self._at(step))

    def _finish(
        self,
        engine: Engine,
        position: Position,
        identity: dict[str, Any],
        state: Any,
        known: dict[str, str],
        temporary: Path,
    ) -> None:
        """Rank 0: the loadable model, meta.json, fsync, rename, `latest`, pruning."""
        if not self.world.is_main:
            return
        final = self._at(position.step)
        engine.task.save_pretrained(engine.model, state, temporary)
        made = {"world_size": self.world.size, "zero_stage": engine.stage, "layout": engine.layout}
        seal(temporary, known, format=1, **asdict(position), **made, identity=identity)
        for path in (*temporary.rglob("*"), temporary):
            if str(path.relative_to(temporary)) not in known:
                fsync(path)
        if final.exists():  # the same step again, after a rollback
            shutil.rmtree(final)
        publish(temporary, final)
        write_whole(self.directory / LATEST_NAME, final.name)
        self._prune()

    def _prune(self) -> None:
        """Removes all but the newest `keep` checkpoints and what killed saves left."""
        for leftover in (*self.directory.glob("step_*.tmp"), *self.directory.glob(f"{WHOLE}_*")):
            shutil.rmtree(leftover)
        for old in newest_checkpoints(self.run)[self.config.keep :]:
            shutil.rmtree(old)

    def find(self) -> Saved | None:
        """The newest complete checkpoint, or None where none was ever saved. Every rank finds the same.

        Raises:
            CheckpointError: there are checkpoints, but none is complete; starting over would replace them.
        """
        candidates = newest_checkpoints(self.run)
        for path in candidates:
            mine = check_files(path, self.world.rank, self.world.size) if self.config.verify else None
            problems = [problem for problem in self.world.gather(mine) if problem]
            if not problems:
                return Saved.read(path)
            if self.world.is_main:
                logger.warning("passing over %s: %s", path, problems[0])
        if candidates:
            raise CheckpointError(
                f"{self.directory}: none of its {len(candidates)} checkpoints is complete and undamaged. Restore one "
                "from a copy, choose another output, or set checkpoint.resume false to start over."
            )
        return None

    def load(self, engine: Engine, saved: Saved, identity: dict[str, Any]) -> None:
        """Restores a checkpoint into `engine`. Collective.

        Args:
            engine: takes model and optimizer.
            saved: what `find` returned.
            identity: data and model of this run, as it was in the round of the checkpoint.

        Raises:
            CheckpointError: data or model differ from the checkpoint's, or its files are damaged.
        """
        path, meta = saved.path, saved.meta
        if difference := explain_mismatch(meta["identity"], identity):
            raise CheckpointError(
                f"{path} was written by a run with other data or another model:\n{difference}\n"
                "Use the old configuration, another output directory, or checkpoint.resume false to start over."
            )
        if (meta["world_size"], meta["zero_stage"], meta["layout"]) != (self.world.size, engine.stage, engine.layout):
            self._load_whole(engine, saved)
            return
        if (failure := self._collectively(lambda: self._check_engine_files(path))) is not None:
            raise CheckpointError(failure if str(path) in failure else f"{path}: {failure}")
        with contained(engine.wrapped), engine.keeping_hyperparameters():
            loaded, _ = engine.wrapped.load_checkpoint(str(path), ENGINE_TAG, load_lr_scheduler_states=False)
        if loaded is None:
            raise CheckpointError(f"{path}: the engine's files could not be loaded")

    def _check_engine_files(self, path: Path) -> None:
        """This rank's share of the pickles that the engine is about to read: a bad one is refused on every rank."""
        check_engine_files(sorted((path / ENGINE_TAG).rglob("*.pt"))[self.world.rank :: self.world.size])

    def _load_whole(self, engine: Engine, saved: Saved) -> None:
        """Restores what other ranks, another ZeRO stage or layout have written: whole tensors, which rank 0 makes."""
        # Named by content too: the same step of a run that was started over is another checkpoint.
        whole = self.directory / f"{WHOLE}_{saved.position.step:08d}_{fingerprint(saved.meta['sha256'])[:12]}"
        names = [name for group in engine.groups for name in group.parameter_names]
        stage, ranks = saved.meta["zero_stage"], saved.meta["world_size"]

        def make() -> None:
            if not self.world.is_main or (whole.is_dir() and check_files(whole) is None):
                return
            shutil.rmtree(whole, ignore_errors=True)
            write_whole_state(saved.path / ENGINE_TAG, stage, ranks, names, whole)

        if (failure := self._collectively(make)) is not None:
            change = f"from stage {stage} on {ranks} ranks to stage {engine.stage} on {self.world.size}"
            raise CheckpointError(f"{saved.path}: {change}: {failure}")
        with WholeState(whole) as state:
            restore(engine, state)


def _settle(folder: Path, written: list[Path]) -> dict[str, str]:
    """The SHA-256 of files that this rank has just written, by name below `folder`; forces them to disk."""
    hashes = file_hashes(folder, [str(path.relative_to(folder)) for path in written])
    for path in written:
        fsync(path)
    return hashes
