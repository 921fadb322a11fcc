"""`prepare`: raw text or images -> token shards, resumable at every part.

    recipe    text or pairs of images                        text.py, pairs.py
    plan      find the inputs, cut them into parts           parts.py; refused if OUTPUT is of other inputs
    run       part -> documents -> ids -> shard              read_part.py, write_shard.py, under executors.py
    finish    check the rejects, write meta.json, clean up   here

Every shard is a function of the input and the tokenizer, whoever writes it and however many at a time. meta.json comes
last and in one step: a directory that has one is complete.
"""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from common.token_shards import META_FILE, Meta, Rejected, ShardMeta, token_bytes_for
from data_pipeline.errors import PrepareError
from data_pipeline.identity import explain_mismatch
from data_pipeline.shards.encoding import Recipe, open_recipe
from data_pipeline.shards.executors import check_executor, make_executor
from data_pipeline.shards.parts import Plan
from data_pipeline.shards.prepare_config import PrepareConfig
from data_pipeline.shards.progress import progress_bar
from data_pipeline.shards.read_part import MENDED, merge_reject_logs
from data_pipeline.shards.workspace import Workspace
from data_pipeline.shards.write_shard import WriteShard, full_disk_named


def prepare(config: PrepareConfig) -> Meta:
    """Write the shards of `config`, on this machine or on a Ray cluster, and return their description.

    Does nothing if they are complete, and continues if an earlier call was interrupted; says so on stderr.

    Raises:
        FileNotFoundError: an input does not exist.
        ValueError: an input file is damaged.
        PrepareError: too many documents are unusable, OUTPUT holds shards of something else, the disk is full, or the
            executor is not available. No meta.json is written then.
    """
    if config.executor == "slurm":
        raise PrepareError("executor: slurm jobs are submitted, not waited for; call `submit`")
    check_executor(config)
    recipe = open_recipe(config)
    workspace, plan, meta = _open(config, recipe)
    if meta is not None:
        return meta
    executor = make_executor(config, workspace, *_steps(config, recipe, workspace, plan))
    with full_disk_named(workspace.output):
        with progress_bar(workspace, [sum(unit.size for unit in part) for part in plan.parts]):
            executor.run()
        return finish(workspace, config.reject_threshold)


def submit(config: PrepareConfig) -> Meta | None:
    """Submit the tasks of `config` to Slurm, and a last job that writes meta.json when they are complete.

    Returns the shards' description if no task is left to run, else None.

    Raises what `prepare` raises, except for what the jobs find: that is in their logs, and no meta.json appears.
    """
    check_executor(config)
    recipe = open_recipe(config)
    workspace, plan, meta = _open(config, recipe)
    if meta is not None:
        return meta
    if all(workspace.is_complete(rank) for rank in range(len(plan.parts))):
        return finish(workspace, config.reject_threshold)
    make_executor(config, workspace, *_steps(config, recipe, workspace, plan)).run()
    return None


def run(config: PrepareConfig) -> str:
    """Writes the shards, or submits the jobs that will; returns what is said at the end. Raises as `prepare` does."""
    meta = submit(config) if config.executor == "slurm" else prepare(config)
    if meta is None:
        return f"submitted; {config.output}/{META_FILE} appears when the jobs are complete"
    return summary(meta, config.output)


def summary(meta: Meta, output: str) -> str:
    """What the shards hold and what was rejected, in a few lines for the terminal."""
    document, material = ("documents", "text") if meta.tokens_per_image is None else ("records", "pixels")
    lines = [
        f"{output}: {meta.documents:,} {document}, {meta.tokens:,} tokens, {meta.bytes:,} bytes of {material}"
        f" ({meta.bytes_per_token:.2f} bytes per token) in {len(meta.shards)} shards"
    ]
    lines += [f"  rejected, {reason}" for reason in _describe_rejects(meta.rejected)]
    return "\n".join([*lines, *(f"  altered, {reason}" for reason in _describe_rejects(meta.altered))])


class Finish(PipelineStep):
    """`finish` as a datatrove step: the last job on a cluster."""

    name = "Write meta.json"
    type = "🔢 - TOKENIZER"

    def __init__(self, workspace: str, reject_threshold: float):
        super().__init__()
        self.workspace = workspace
        self.reject_threshold = reject_threshold

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Write meta.json."""
        finish(Workspace(Path(self.workspace)), self.reject_threshold)


def finish(workspace: Workspace, reject_threshold: float) -> Meta:
    """Put the reports of all parts together, write meta.json and remove the workspace.

    Raises PrepareError when parts are missing, when more than `reject_threshold` of the documents were rejected, or
    when none is left. The parts are kept, so that a call with another threshold need not redo them.
    """
    plan = Plan.load(workspace.plan)
    ranks = range(len(plan.parts))
    missing = [rank for rank in ranks if not workspace.is_complete(rank)]
    if missing:
        raise PrepareError(
            f"{workspace.output}: {len(missing)} of {len(ranks)} parts are not complete (the first is {missing[0]});"
            f" see {workspace.logs / 'logs'}, then give the same command again"
        )
    shards = [ShardMeta(**json.loads(workspace.shard_report(rank).read_text(encoding="utf-8"))) for rank in ranks]
    tokenizer = plan.inputs["tokenizer"]
    logged = merge_reject_logs([workspace.reject_log(rank) for rank in ranks])
    meta = Meta(
        tokenizer_hash=tokenizer["hash"],
        vocab_size=tokenizer["vocab_size"],
        token_bytes=token_bytes_for(tokenizer["vocab_size"]),
        bos_token_id=tokenizer["bos_token_id"],
        eos_token_id=tokenizer["eos_token_id"],
        shards=[shard for shard in shards if shard.tokens],
        rejected={reason: entry for reason, entry in logged.items() if reason != MENDED},
        altered={reason: entry for reason, entry in logged.items() if reason == MENDED},
        inputs=plan.inputs,
    )
    _check_rejects(meta, workspace.output, reject_threshold)
    meta.check_files(workspace.output)
    meta.save(workspace.output)
    for leftover in workspace.output.glob("*.partial"):
        leftover.unlink()  # a killed task's; none is running any more
    shutil.rmtree(workspace.directory)
    return meta


def _open(config: PrepareConfig, recipe: Recipe) -> tuple[Workspace, Plan, Meta | None]:
    """The plan in its workspace, new or from an interrupted call; and the description of shards that are complete."""
    plan = recipe.plan()
    output = Path(config.output)
    workspace = Workspace.of(output)
    if (output / META_FILE).is_file():
        meta = Meta.load(output)
        _refuse_other_inputs(output, "shards", meta.inputs, plan.inputs)
        meta.check_files(output)
        shutil.rmtree(workspace.directory, ignore_errors=True)
        print(f"{output}: already prepared from the same input and tokenizer; nothing to do", file=sys.stderr)
        return workspace, plan, meta
    if workspace.plan.is_file():
        _refuse_other_inputs(output, "unfinished shards", Plan.load(workspace.plan).inputs, plan.inputs)
        complete = workspace.keep_complete_parts(len(plan.parts))
        print(
            f"{output}: continues an earlier call; {complete} of {len(plan.parts)} parts are complete", file=sys.stderr
        )
        return workspace, plan, None
    if any(output.glob("*.ds")):
        raise PrepareError(f"{output}: holds .ds files that were not written by prepare; choose another output")
    with full_disk_named(output):
        workspace.make()
        recipe.copy_tokenizer(workspace.tokenizer)
        plan.save(workspace.plan)
    return workspace, plan, None


def _steps(
    config: PrepareConfig, recipe: Recipe, workspace: Workspace, plan: Plan
) -> tuple[list[PipelineStep], int, PipelineStep]:
    """The steps of every task, the number of tasks, and the step after them."""
    directory = str(workspace.directory.resolve())
    write = WriteShard(directory, plan.inputs["tokenizer"]["vocab_size"], recipe.encoding())
    return [recipe.reader(directory), write], len(plan.parts), Finish(directory, config.reject_threshold)


def _refuse_other_inputs(output: Path, what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    difference = explain_mismatch(old, new)
    if difference:
        raise PrepareError(
            f"{output}: holds {what} of another input or tokenizer ({'; '.join(difference.splitlines())});"
            f" remove {output} to begin anew with this input, or choose another output"
        )


def _check_rejects(meta: Meta, output: Path, threshold: float) -> None:
    rejected = sum(entry.count for entry in meta.rejected.values())
    total = rejected + meta.documents
    reasons = "; ".join(_describe_rejects(meta.rejected))
    if rejected > threshold * total:
        raise PrepareError(
            f"{output}: {rejected} of {total} documents ({rejected / total:.2%}) cannot be used, more than"
            f" reject_threshold {threshold:.2%}: {reasons}; raise reject_threshold (finished parts"
            f" are kept), or mend the input and remove {output}"
        )
    if not meta.documents:
        raise PrepareError(f"{output}: the input holds no document" + (f": {reasons}" if reasons else ""))


def _describe_rejects(rejected: Mapping[str, Rejected]) -> list[str]:
    """One line per reason: count, and where the first examples are."""
    return [
        f"{reason}: {entry.count} (" + ", ".join(f"{e.file}:{e.line} {e.excerpt!r}" for e in entry.examples) + ")"
        for reason, entry in rejected.items()
    ]
