"""Calibration rows out of shard directories, and what is wrong with shards that cannot serve."""

import json

import numpy as np
import pytest
import torch

from arch.surgery.calibration import draw_rows, open_shards
from arch.surgery.errors import CalibrationError
from arch.surgery.vocabulary import read_kept_rows
from common.errors import ShardError
from common.vocabulary_map import VocabularyMapError

from .surgery_cases import write_map, write_shards

FOREIGN = {"file": "../00000.ds", "tokens": 1, "documents": 1, "bytes": 1, "sha256": "", "index_sha256": ""}


def test_rows_are_disjoint_pieces_of_the_shards(tmp_path):
    shards = open_shards([write_shards(tmp_path / "a", 1000), write_shards(tmp_path / "b", 500, seed=1)])
    everything = [np.asarray(stream)[: len(stream) // 16 * 16].reshape(-1, 16) for stream in shards.streams]
    available = sorted(np.concatenate(everything).tolist())
    total = sum(map(len, everything))
    assert shards.rows(16) == total == 31 + 31 + 15 + 15
    sets = draw_rows(shards, [10, 20, total - 30], 16, seed=0)
    assert [tuple(rows.shape) for rows in sets] == [(10, 16), (20, 16), (total - 30, 16)]
    assert all(rows.dtype == torch.int64 for rows in sets)
    assert sorted(row for part in sets for row in part.tolist()) == available, "every row once"


def test_the_seed_decides_and_the_last_set_does_not_move_the_first(tmp_path):
    shards = open_shards([write_shards(tmp_path / "a")])
    first, _ = draw_rows(shards, [8, 4], 16, seed=0)
    again, _ = draw_rows(shards, [8, 40], 16, seed=0)
    other, _ = draw_rows(shards, [8, 4], 16, seed=1)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_bad_shards_are_named(tmp_path):
    good = write_shards(tmp_path / "good")
    with pytest.raises(CalibrationError, match="name at least one directory"):
        open_shards([])
    with pytest.raises(FileNotFoundError, match="gone"):
        open_shards([tmp_path / "gone"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ShardError, match="not a finished shard directory"):
        open_shards([tmp_path / "empty"])
    with pytest.raises(CalibrationError, match="shards of different tokenizers"):
        open_shards([good, write_shards(tmp_path / "foreign", tokenizer="other")])
    with pytest.raises(CalibrationError, match=r"good: 300 rows of 16 tokens are needed, there are 250"):
        draw_rows(open_shards([good]), [300], 16, seed=0)
    (good / "00001.ds").write_bytes((good / "00001.ds").read_bytes()[:-2])
    with pytest.raises(ShardError, match=r"00001.ds: truncated: expected 4000 bytes, found 3998"):
        open_shards([good])
    (good / "00001.ds").unlink()
    with pytest.raises(ShardError, match=r"00001.ds: named in meta.json but missing"):
        open_shards([good])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_bytes": 8}, "expected token_bytes 2 or 4, found 8"),
        ({"vocab_size": "97"}, "wrong type"),
        ({"shards": [FOREIGN]} | {name: FOREIGN[name] for name in ("tokens", "documents", "bytes")}, "plain file name"),
        ({"shards": None}, "shards: Input should be a valid array"),
        ({"tokenizer_hash": None}, "wrong type"),
    ],
)
def test_a_broken_meta_is_named(tmp_path, change, message):
    meta = write_shards(tmp_path / "a") / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | change))
    with pytest.raises(ShardError, match=message) as error:
        open_shards([tmp_path / "a"])
    assert str(meta) in str(error.value)
    meta.write_text("{")
    with pytest.raises(ShardError, match="not JSON"):
        open_shards([tmp_path / "a"])


def test_ids_beyond_the_vocabulary_are_found(tmp_path):
    directory = write_shards(tmp_path / "a")
    tokens = np.fromfile(directory / "00000.ds", dtype="<u2")
    tokens[5] = 9999
    tokens.tofile(directory / "00000.ds")
    with pytest.raises(CalibrationError, match=r"00000.ds: token id 9999 after token 0, but .* vocabulary of 97"):
        draw_rows(open_shards([directory]), [250], 16, seed=0)


def test_a_vocabulary_map_translates(tmp_path):
    kept = [0, 3, 4, 10]
    vocabulary = read_kept_rows(write_map(tmp_path / "vocabulary_map.json", kept))
    assert read_kept_rows(tmp_path).kept.tolist() == kept
    assert not vocabulary.uses_new_ids("donor") and vocabulary.uses_new_ids("new")
    with pytest.raises(CalibrationError, match="tokenizer other"):
        vocabulary.uses_new_ids("other")
    old = torch.tensor([[3, 1, 10, 96], [4, 0, 0, 5], [3, 3, 2, 10]])
    assert vocabulary.without_dropped(old).tolist() == [[1, 3, 2, 0], [0, 1, 1, 3]]
    assert vocabulary.without_dropped(torch.tensor([[1, 3, 0, 96]])).tolist() == [[1, 0]], "one short row"
    assert vocabulary.without_dropped(torch.tensor([[1, 3]])).shape == (0, 2)


@pytest.mark.parametrize("kept", [[], [3, 1], [1, 1], [-1, 2], [5, 97], "abc", None, [1, "2"]])
def test_a_map_that_does_not_ascend_within_the_donor_is_refused(tmp_path, kept):
    with pytest.raises(VocabularyMapError, match=r"map.json: (not a vocabulary map|expected format 1)"):
        read_kept_rows(write_map(tmp_path / "map.json", kept))
    with pytest.raises(VocabularyMapError, match="not found; give the --output of `python -m tokenizer compress`"):
        read_kept_rows(tmp_path)
