"""Where the tasks of `prepare` run: datatrove's executors, made from a PrepareConfig.

local   worker processes on this machine (the default)
slurm   a job array, and after it a job that writes meta.json
ray     the cluster that `ray.init()` finds
"""

import difflib
import importlib.util
import inspect
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stderr
from copy import deepcopy
from io import StringIO
from typing import Any

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import setup_default_logger
from datatrove.utils.stats import PipelineStats

from common.processes import WorkerContext, available_cores, end_with_parent
from data_pipeline.errors import PrepareError
from data_pipeline.shards.prepare_config import PrepareConfig
from data_pipeline.shards.workspace import Workspace


class LocalExecutor(LocalPipelineExecutor):
    """datatrove's local executor on a process pool that notices a killed worker; its own waits for that worker forever.

    The tasks' logs go to datatrove's log files only, so that the terminal keeps its progress bar.
    """

    def run(self) -> None:
        """Run all tasks that are not complete; the first error ends the others and is raised."""
        self.save_executor_as_json()
        ranks = self.get_incomplete_ranks()
        if self.workers == 1:
            for rank in ranks:
                deepcopy(self)._run_for_rank(rank)
            return
        with ProcessPoolExecutor(self.workers, WorkerContext(), end_with_parent) as pool:
            try:
                for future in as_completed([pool.submit(self._run_for_rank, rank) for rank in ranks]):
                    future.result()
            except BrokenProcessPool as error:
                raise PrepareError(
                    "a worker process was killed, probably for want of memory; use fewer workers or smaller part_bytes,"
                    " and give the same command again: finished parts are kept"
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        with quiet():
            return super()._run_for_rank(rank, local_rank, node_rank)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps datatrove's logger away from the terminal."""
    try:
        with redirect_stderr(StringIO()):
            setup_default_logger()
            yield
    finally:
        setup_default_logger()


def check_executor(config: PrepareConfig) -> None:
    """Raise PrepareError if the executor's program or package is missing, or its options are wrong or incomplete."""
    if config.executor == "ray":
        _check_options(RayPipelineExecutor, config.executor_options)
        if importlib.util.find_spec("ray") is None:
            raise PrepareError("executor: ray needs the package ray; install it with `pip install 'tinypi[ray]'`")
    elif config.executor == "slurm":
        _check_options(SlurmPipelineExecutor, config.executor_options)
        if shutil.which("sbatch") is None:
            raise PrepareError("executor: slurm needs the program sbatch, which is not here; run on a login node")
    elif config.executor_options:
        raise PrepareError("executor_options: the local executor takes none; they are for slurm and ray")


def make_executor(
    config: PrepareConfig, workspace: Workspace, pipeline: list[PipelineStep], tasks: int, finish: PipelineStep
) -> PipelineExecutor:
    """The executor that `config` names (and `check_executor` has accepted), ready to run.

    Args:
        config: which executor, and its options.
        workspace: where logs and completion markers go.
        pipeline: the steps of every task.
        tasks: number of tasks; those that are complete are skipped.
        finish: the step that Slurm runs when all tasks are complete; elsewhere the caller runs it.
    """
    common: dict[str, Any] = {"tasks": tasks, "logging_dir": str(workspace.logs)}
    if config.executor == "local":
        return LocalExecutor(pipeline, workers=min(config.workers or available_cores(), tasks), **common)
    common |= {"workers": config.workers or -1, **config.executor_options}
    if config.executor == "ray":
        return RayPipelineExecutor(pipeline, **common)
    parts = SlurmPipelineExecutor(pipeline, job_name="tinypi-prepare", **common)
    common |= {"tasks": 1, "logging_dir": str(workspace.finish_logs)}
    return SlurmPipelineExecutor([finish], job_name="tinypi-finish", depends=parts, **common)


def _check_options(executor: type[PipelineExecutor], options: Mapping[str, Any]) -> None:
    """Compare the user's options with those parameters of the executor that are not set here."""
    ours = {"pipeline", "tasks", "workers", "logging_dir", "job_name", "depends", "skip_completed"}
    free = {name: what for name, what in inspect.signature(executor).parameters.items() if name not in ours}
    for name in options:
        if name not in free:
            nearest = difflib.get_close_matches(name, free, n=1, cutoff=0)[0]
            raise PrepareError(
                f"executor_options.{name}: {executor.__name__} has no such option; is {nearest!r} meant?"
            )
    missing = [name for name, what in free.items() if what.default is what.empty and name not in options]
    if missing:
        raise PrepareError(f"executor_options: {executor.__name__} needs {' and '.join(missing)}")
