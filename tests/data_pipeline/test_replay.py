"""replay prints what the loader served."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from common.errors import DataError
from common.token_shards import Meta
from data_pipeline.__main__ import main
from data_pipeline.loader import Loader, collate_tokens
from data_pipeline.mixture import Mixture
from data_pipeline.order import Order
from data_pipeline.replay import ReplayConfig, replay
from data_pipeline.round_order import RoundsOrder, Selection, selection_path
from data_pipeline.shards.prepare import prepare
from data_pipeline.shards.prepare_config import PrepareConfig
from data_pipeline.shards.token_source import TokenSource

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


@pytest.fixture
def described(run: Path) -> Path:
    """The same run, as it is written today: with what its shards hold."""
    content = json.loads((run / "order.json").read_text())
    content["contents"] = [Meta.load(directory).content for directory in content["shards"]]
    (run / "order.json").write_text(json.dumps(content))
    return run


def batch(path: Path, *shards: Path) -> list[str]:
    return [document.text for document in replay(ReplayConfig(str(path), 7, shards=list(map(str, shards))))]


def test_shards_that_moved_are_found_by_what_they_hold(corpus, tokenizer_directory, described, tmp_path) -> None:
    content = json.loads((described / "order.json").read_text())
    other = tmp_path / "other.jsonl"
    other.write_bytes(corpus.read_bytes().replace(b"beginning", b"beginninG"))
    (tmp_path / "two").rename(tmp_path / "old")
    prepare(PrepareConfig([str(other)], str(tmp_path / "two"), str(tokenizer_directory), workers=1))
    content["contents"][1] = Meta.load(tmp_path / "two").content
    content["sizes"][1] = len(TokenSource(tmp_path / "two", 64))
    (described / "order.json").write_text(json.dumps(content))
    expected = batch(described)

    (tmp_path / "store").mkdir()
    for number, name in enumerate(("two", "one")):  # the names say nothing
        (tmp_path / name).rename(tmp_path / "store" / f"x{number}")
    with pytest.raises(DataError, match=r"one: the run's shards are not there any more; say where .* --shards"):
        batch(described)
    assert batch(described, tmp_path / "store") == expected
    assert batch(described, tmp_path / "store" / "x0", tmp_path / "store" / "x1") == expected
    with pytest.raises(DataError, match="nowhere: no such directory"):
        batch(described, tmp_path / "nowhere")
    # Moved together with the run, under their old names.
    (tmp_path / "away").mkdir()
    (tmp_path / "store" / "x0").rename(tmp_path / "away" / "two")
    (tmp_path / "store" / "x1").rename(tmp_path / "away" / "one")
    described.rename(tmp_path / "away" / "run")
    assert batch(tmp_path / "away" / "run") == expected
    # Written again since, from other text.
    (tmp_path / "away" / "one").rename(tmp_path / "away" / "first")
    (tmp_path / "away" / "two").rename(tmp_path / "one")
    with pytest.raises(DataError, match="one: not the shards of the run; they were written again since"):
        batch(tmp_path / "away" / "run")


def test_runs_of_before_take_directories_in_order(run: Path, tmp_path: Path) -> None:
    expected = batch(run)
    (tmp_path / "one").rename(tmp_path / "first")
    with pytest.raises(DataError, match=r"one: the run's shards are not there any more"):
        batch(run)
    assert batch(run, tmp_path / "first", tmp_path / "two") == expected
    with pytest.raises(DataError, match="the run has 2 shard directories; name each of them, in order"):
        batch(run, tmp_path)


def test_a_tokenizer_without_bos_opens_documents_with_eos(
    corpus: Path, tokenizer_directory: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    from tokenizer.compression.counting import count_shards

    bare = tmp_path / "bare"
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
    tokenizer.bos_token = None
    tokenizer.save_pretrained(bare)
    eos = tokenizer.eos_token_id
    meta = prepare(PrepareConfig([str(corpus)], str(tmp_path / "shards"), str(bare), workers=1))
    assert (meta.bos_token_id, meta.eos_token_id) == (eos, eos) and not meta.rejected
    source = TokenSource(tmp_path / "shards", 32)
    sample = source.sample(0)
    [first] = np.flatnonzero(sample["position_ids"] == 0)[:1]
    assert sample["input_ids"][first] == eos and sample["labels"][first] != -100
    counts = count_shards(tmp_path / "shards", meta.tokenizer_hash, meta.vocab_size)
    assert counts.per_id[eos] == 0 and counts.per_id.sum() == meta.tokens - 2 * meta.documents
