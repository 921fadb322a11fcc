"""Promise 6 for every task that reads images: what is broken is named and ends the run, what is odd is trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pretrain.command_line import parse
from pretrain.trainer import Outcome, train
from tests.data_pipeline.odd_images import BROKEN, SOUND
from tests.data_pipeline.word_cases import picture
from tests.pretrain.conftest import ROOT
from tests.pretrain.task_cases import Materials, arguments
from tokenizer.inputs.images import ImageError

TASKS = ("words", "captioned_words", "images")


def one_step(case: str, store: Path, folder: Path, **changes: object) -> list[str]:
    """The command line of one step over everything in the store."""
    materials = Materials(folder, {})
    own = {"task.train": json.dumps([str(store)]), "task.valid": "{}", "task.copies": 0, "steps": 1, **changes}
    return arguments(case, materials, folder / "run", **{name.replace(".", "__"): value for name, value in own.items()})


def write_store(path: Path, planted: bytes) -> Path:
    """Eight images with labels, one of them the planted one."""
    images = [picture(number) for number in range(7)]
    images.insert(3, planted)
    columns = {"text": [f"word{number}" for number in range(8)], "image": pa.array(images, pa.binary())}
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("case", TASKS)
def test_a_broken_image_is_named(case, name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    content, message = BROKEN[name]
    store = write_store(tmp_path / "store.parquet", content)
    with pytest.raises(ImageError, match=f"store.parquet: row 3: .*{message}"):
        train(parse(one_step(case, store, tmp_path))[0])


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("case", TASKS)
def test_an_odd_image_is_trained_on(case, name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    store = write_store(tmp_path / "store.parquet", SOUND[name])
    assert train(parse(one_step(case, store, tmp_path))[0]) is Outcome.FINISHED
