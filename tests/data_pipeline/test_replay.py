"""replay prints what the loader served."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from data_pipeline import Loader, Mixture, Order, PrepareConfig, TokenSource, collate_tokens, prepare
from data_pipeline.__main__ import main
from data_pipeline.errors import DataError
from data_pipeline.replay import ReplayConfig, replay
from data_pipeline.round_order import RoundsOrder, Selection, selection_path

STEP = 1234


@pytest.fixture
def run(corpus: Path, tokenizer_directory: Path, tmp_path: Path) -> Path:
    """A run directory with an order.json over two shard directories."""
    directories = [tmp_path / "one", tmp_path / "two"]
    for directory in directories:
        prepare(PrepareConfig([str(corpus)], str(directory), str(tokenizer_directory), workers=1))
    sizes = [len(TokenSource(directory, 64)) for directory in directories]
    order = Order(sizes, 6, seed=5, weights=[0.25, 0.75]).identity()
    description = {
        "shards": [str(directory) for directory in directories],
        "sequence_length": 64,
        "document_mask": True,
    }
    path = tmp_path / "run"
    path.mkdir()
    (path / "order.json").write_text(json.dumps(order | description))
    return path


def test_replay_is_what_the_loader_serves(run: Path) -> None:
    content = json.loads((run / "order.json").read_text())
    source = Mixture([TokenSource(directory, 64) for directory in content["shards"]])
    order = Order(source.sizes, 6, 5, content["weights"])
    loader = Loader(
        source, order, collate_tokens, rank=0, world_size=1, micro_batch_size=6, start_step=STEP, stop_step=STEP + 1
    )
    [[batch]] = list(loader)
    backend = Tokenizer.from_file(str(Path(content["shards"][0]) / "tokenizer" / "tokenizer.json"))
    found = list(replay(ReplayConfig(str(run), STEP)))
    for row in range(6):
        documents = [document for document in found if document.row == row]
        assert {document.sample for document in documents} == {int(batch["sample_ids"][row])}
        starts = (batch["position_ids"][row] == 0).nonzero().flatten().tolist()
        assert [document.span.row_start for document in documents] == starts
        for document in documents:
            stop = document.span.row_start + document.span.tokens
            ids = batch["input_ids"][row, document.span.row_start : stop].tolist()
            assert document.text == backend.decode(ids, skip_special_tokens=False)


def test_the_command_prints_text_and_json(run: Path, capsys) -> None:
    assert main(["replay", "--run", str(run), "--step", str(STEP), "--rows", "2", "--characters", "20"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("row")] == ["row 0", "row 1"]
    assert all(line.startswith("  00000.ds document ") for line in lines if not line.startswith("row"))
    assert main(["replay", "--run", str(run / "order.json"), "--step", str(STEP), "--json", "true"]) == 0
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {entry["row"] for entry in objects} == set(range(6))
    fields = {"row", "sample", "directory", "shard", "document", "start", "stop", "row_start", "place", "text"}
    assert set(objects[0]) == fields


def test_runs_that_cannot_be_replayed(run: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere: not found; give a run directory"):
        list(replay(ReplayConfig(str(tmp_path / "nowhere"), 0)))
    path = run / "order.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"sizes": [1, 2]}))
    with pytest.raises(DataError, match=r"the run's sources had \[1, 2\] samples, the shards .* written again since"):
        list(replay(ReplayConfig(str(run), 0)))
    del content["seed"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"order\.json: not the order of a run: seed: Field required"):
        list(replay(ReplayConfig(str(run), 0)))
    path.write_text(json.dumps(content | {"kind": "smells"}))
    with pytest.raises(DataError, match="kind 'smells' cannot be replayed; known are tokens, sentences"):
        list(replay(ReplayConfig(str(run), 0)))
    with pytest.raises(ValueError, match="rows: must be at least 0, got -1"):
        ReplayConfig(str(run), 0, rows=-1)
    assert main(["replay", "--run", str(run), "--step", "0"]) == 1
    assert capsys.readouterr().err.startswith("data_pipeline replay: ")


def test_later_rounds_replay_the_chosen_batches_and_refuse_others(run: Path) -> None:
    path = run / "order.json"
    content = json.loads(path.read_text())
    order = RoundsOrder(content["sizes"], 6, 5, content["weights"], [Selection(2, 8, "batch", np.array([1, 4, 6]))])
    path.write_text(json.dumps(content | order.identity()))
    selection = selection_path(run, 2)
    selection.parent.mkdir()
    selection.write_bytes(order.later[0].to_bytes())

    def texts(step: int) -> list[tuple[int, str]]:
        return [(document.sample, document.text) for document in replay(ReplayConfig(str(run), step))]

    for step in (8, 9, 10):
        assert texts(step) == texts(int(order.units(step, "batch")[0]))
    assert texts(7) != texts(8) and texts(9) != texts(10)
    selection.write_bytes(Selection(2, 8, "batch", np.array([1, 4, 5])).to_bytes())
    with pytest.raises(DataError, match=r"the selections in .*rounds are not those of the run: rounds\[0\]\.units"):
        texts(8)
