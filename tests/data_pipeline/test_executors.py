"""Executors: a killed worker is noticed; Slurm and Ray are made from the config; Slurm's scripts do the whole job."""

import importlib.util
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from datatrove.executor import RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from common.token_shards import Meta
from data_pipeline.errors import PrepareError
from data_pipeline.shards.executors import check_executor, make_executor
from data_pipeline.shards.prepare import prepare, submit
from data_pipeline.shards.prepare_config import PrepareConfig
from data_pipeline.shards.workspace import Workspace

SLURM = {"partition": "cpu", "time": "1:00:00"}


class Kill(PipelineStep):
    """Kills its own process in task 1, as the kernel does when memory runs out."""

    name = "Kill"
    type = "test"

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)


class Fail(Kill):
    """Raises in task 1."""

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        if rank == 1:
            raise PrepareError("task 1 says why")


def executor_of(tmp_path: Path, step: PipelineStep, **options: Any):
    config = PrepareConfig(["in"], str(tmp_path), "tokenizer", **options)
    check_executor(config)
    return make_executor(config, Workspace.of(tmp_path), [step], 3, step)


@pytest.mark.parametrize(("step", "message"), [(Kill(), "a worker process was killed"), (Fail(), "task 1 says why")])
def test_errors_of_workers_arrive(tmp_path: Path, step: PipelineStep, message: str, capfd) -> None:
    with pytest.raises(PrepareError, match=message):
        executor_of(tmp_path, step, workers=2).run()
    assert "Traceback" not in capfd.readouterr().err


def test_ray_is_made_from_the_config(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PrepareError, match=r"ray needs the package ray; install it with `pip install 'tinypi\[ray\]'`"):
        executor_of(tmp_path, Fail(), executor="ray")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    executor = executor_of(tmp_path, Fail(), executor="ray", workers=5, executor_options={"cpus_per_task": 2})
    assert isinstance(executor, RayPipelineExecutor)
    assert (executor.workers, executor.cpus_per_task, executor.world_size) == (5, 2, 3)
    with pytest.raises(PrepareError, match=r"executor_options\.cpus: RayPipelineExecutor .* is 'cpus_per_task' meant"):
        executor_of(tmp_path, Fail(), executor="ray", executor_options={"cpus": 2})


def test_slurm_is_made_from_the_config(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(PrepareError, match="the local executor takes none"):
        executor_of(tmp_path, Fail(), executor_options=SLURM)
    with pytest.raises(PrepareError, match=r"executor_options: SlurmPipelineExecutor needs time and partition"):
        executor_of(tmp_path, Fail(), executor="slurm")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PrepareError, match="needs the program sbatch"):
        executor_of(tmp_path, Fail(), executor="slurm", executor_options=SLURM)
    program = tmp_path / "sbatch"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    executor = executor_of(
        tmp_path, Fail(), executor="slurm", workers=7, executor_options=SLURM | {"mem_per_cpu_gb": 9}
    )
    assert isinstance(executor, SlurmPipelineExecutor) and executor.world_size == 1
    parts = executor.depends
    assert (parts.world_size, parts.workers, parts.partition, parts.mem_per_cpu_gb) == (3, 7, "cpu", 9)


def test_prepare_does_not_wait_for_slurm(tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match="call `submit`"):
        prepare(PrepareConfig(["in"], str(tmp_path), "tokenizer", executor="slurm"))


@pytest.fixture
def toy_slurm(tmp_path: Path, monkeypatch) -> Path:
    """sbatch, srun and scontrol as shell scripts: jobs run at once, one task after the other."""
    programs = {
        "sbatch": """
            for script; do :; done
            last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
            for task in $(seq 0 "${last:-0}"); do
                SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=here RUN_OFFSET=0 bash "$script" >>"$0.log" 2>&1 || true
            done
            echo Submitted batch job 17
        """,
        "srun": 'while [ "${1#-}" != "$1" ]; do [ "$1" = -n ] && shift; shift; done\nexec "$@"',
        "scontrol": "echo here",
        "merge_stats": ":",
    }
    directory = tmp_path / "bin"
    directory.mkdir()
    for name, text in programs.items():
        (directory / name).write_text(f"#!/bin/bash\n{text}\n")
        (directory / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    return directory


def test_slurm_jobs_write_the_same_shards(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path, toy_slurm: Path
) -> None:
    with corpus.open("a") as file:
        file.write("broken\n")

    def config(name: str, **options: Any) -> PrepareConfig:
        return PrepareConfig(
            [str(corpus)], str(tmp_path / name), str(tokenizer_directory), part_bytes=14_000, **options
        )

    slurm = config("slurm", executor="slurm", executor_options=SLURM, reject_threshold=0.5)
    assert submit(slurm) is None
    local = prepare(config("local", workers=1, reject_threshold=0.5))
    log = toy_slurm / "sbatch.log"
    assert Meta.load(tmp_path / "slurm") == local, log.read_text()
    for shard in local.shards:
        assert (tmp_path / "slurm" / shard.file).read_bytes() == (tmp_path / "local" / shard.file).read_bytes()
    assert submit(slurm) == local

    strict = config("strict", executor="slurm", executor_options=SLURM)
    assert submit(strict) is None and not (tmp_path / "strict" / "meta.json").exists()
    with pytest.raises(PrepareError, match=r"broken JSON: 1 \(corpus\.jsonl:81 'broken'\)"):
        submit(strict)  # the jobs are done: what the last one found is said here
