"""pair-images writes what a tokenizer will see: every image of every record, to the pixel."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_pipeline.__main__ import main
from data_pipeline.images.source import ImageSource
from data_pipeline.pairs.pairs import PairsConfig, PairSet
from tests.data_pipeline.visual_cases import write_photographs


def test_the_images_are_those_of_the_records(tmp_path, capsys):
    photographs = write_photographs(tmp_path / "photographs.parquet", count=3)
    output = tmp_path / "new" / "images.parquet"
    words = ["pair-images", "--input", str(photographs), "--output", str(output), "--image_size", "16"]
    assert main([*words, "--pairs.task", "edges", "--pairs.copies", "1"]) == 0
    assert "12 images" in capsys.readouterr().out
    table, source = pq.read_table(output), ImageSource(output, 16)
    records = PairSet(PairsConfig("edges", copies=1), [photographs], 16)
    assert table["record"].to_pylist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert table["place"].to_pylist() == [0, 1] * 6
    expected = [image for record in range(6) for image in records.pair(record)]
    assert all(np.array_equal(source.pixels(number), image) for number, image in enumerate(expected))
    assert main([*words, "--pairs.task", "edges", "--pairs.copies", "1", "--limit", "2"]) == 0
    assert len(set(pq.read_table(output)["record"].to_pylist())) == 2


@pytest.mark.parametrize(("change", "message"), [({"task": "files"}, "no column"), ({"rows": [0, 9]}, "rows 0")])
def test_errors_are_one_line(tmp_path, capsys, change, message):
    photographs = write_photographs(tmp_path / "photographs.parquet", count=2)
    pairs = json.dumps({"task": "edges"} | change)
    words = ["pair-images", "--input", str(photographs), "--output", str(tmp_path / "images.parquet")]
    assert main([*words, "--pairs", pairs]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "images.parquet").exists()
