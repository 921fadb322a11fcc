"""replay of word runs: the names and labels of what the loader served, and a refusal where the words have changed."""

import json
from pathlib import Path

import pytest

from common.errors import DataError
from data_pipeline.__main__ import main
from data_pipeline.loader import Loader
from data_pipeline.mixture import Mixture
from data_pipeline.order import Order
from data_pipeline.replay import ReplayConfig, replay
from data_pipeline.words.synthetic import SynthConfig
from pretrain.tasks import WordRecognitionTask
from tests.data_pipeline.word_cases import write_lmdb
from tests.pretrain.test_word_recognition import LABELS, SHAPE

STEP = 5


@pytest.fixture
def task(tmp_path: Path) -> WordRecognitionTask:
    """A store of eight words, each three times, and drawn ones."""
    (tmp_path / "shape.yaml").write_text(json.dumps(SHAPE))
    (tmp_path / "list.txt").write_text("sun moon star rain wind")
    write_lmdb(tmp_path / "words", LABELS)
    synthetic = SynthConfig([str(tmp_path / "list.txt")], 40, longest=8)
    return WordRecognitionTask(
        str(tmp_path / "shape.yaml"), [str(tmp_path / "words")], synthetic=synthetic, charset="36", copies=3
    )


@pytest.fixture
def run(task: WordRecognitionTask, tmp_path: Path) -> Path:
    """What a run of the task leaves for replay."""
    sources, weights = task.training_sources()
    order = Order([len(source) for source in sources], 6, seed=3, weights=weights).identity()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "order.json").write_text(json.dumps(order | task.replay_description()))
    return tmp_path / "run"


def test_the_words_are_those_that_the_loader_served(task, run):
    sources, _ = task.training_sources()
    mixture = Mixture(sources)
    order = Order(mixture.sizes, 6, 3)
    loader = Loader(
        mixture, order, task.collate, rank=0, world_size=1, micro_batch_size=6, start_step=STEP, stop_step=STEP + 1
    )
    [[batch]] = list(loader)
    found = list(replay(ReplayConfig(str(run), STEP)))
    assert [document.sample for document in found] == batch["sample_ids"].tolist()
    assert [document.text for document in found] == [task.tokenizer.decode(ids) for ids in batch["ids"].numpy()]
    assert {document.directory for document in found} == {task.train[0], "drawn words"}
    for document in found:
        if document.sample < 24:  # the store's eight words, three times
            number = document.sample % 8
            assert document.place == f"{task.train[0]}: image-{number + 1:09d}"
            assert document.text == LABELS[number].lower()
        else:
            assert document.place == f"word {document.sample - 24}"


def test_the_command_prints_them(run, capsys):
    assert main(["replay", "--run", str(run), "--step", str(STEP), "--rows", "2"]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("row 0: sample ") and "tokens" not in second and second.count("'") == 2
    assert main(["replay", "--run", str(run), "--step", str(STEP), "--json", "true"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 6 and all(row["text"] and row["place"] for row in rows)


def test_other_words_are_refused(run, tmp_path):
    write_lmdb(tmp_path / "others", ["other", *LABELS[1:]])
    content = json.loads((run / "order.json").read_text())
    (run / "order.json").write_text(json.dumps(content | {"stores": [str(tmp_path / "others")]}))
    with pytest.raises(DataError, match="others: not the words of the run"):
        list(replay(ReplayConfig(str(run), STEP)))
