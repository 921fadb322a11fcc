"""One table of images for every layout: what a run remembers of its data, rows as mappings, classes beside images."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.images.source import ImageSource
from data_pipeline.images.tables import open_tables
from data_pipeline.words.source import WordSource
from data_pipeline.words.stores import LmdbWriter
from tokenizer.characters import CHARSETS, CharacterTokenizer
from tokenizer.inputs.image_table import FilesTable, ImageTable, JoinedTable, ParquetTable
from tokenizer.inputs.images import ImageError

CONTENTS = [bytes([number]) * (5 + 3 * number) for number in range(4)]
WORDS = ["one", "two", "three", "four"]
IMAGES_HASH = hashlib.sha256(b"5\x008\x0011\x0014\x00").hexdigest()
"""Sizes of all images, as checkpoints have recorded them since the first image task."""
WORDS_HASH = hashlib.sha256(b"one\x005\x00two\x008\x00three\x0011\x00four\x0014\x00").hexdigest()
"""Labels and sizes, as checkpoints of word recognition have them."""


def write(folder: Path, kind: str) -> Path:
    """The four images and words in one layout."""
    path = folder / kind
    if kind == "lmdb":
        with LmdbWriter(path) as writer:
            for content, word in zip(CONTENTS, WORDS, strict=True):
                writer.add(content, word)
    elif kind.endswith(".parquet"):
        images = pa.array([{"bytes": content, "path": None} for content in CONTENTS] if "hub" in kind else CONTENTS)
        pq.write_table(pa.table({"image": images, "text": WORDS, "class": [3, 1, 1, 0]}), path, row_group_size=3)
    else:
        path.mkdir()
        for number, content in enumerate(CONTENTS):
            (path / f"{number}.png").write_bytes(content)
        if kind == "words":
            (path / "labels.tsv").write_text("".join(f"{n}.png\t{word}\n" for n, word in enumerate(WORDS)))
    return path


@pytest.mark.parametrize("kind", ["folder", "plain.parquet", "hub.parquet"])
def test_the_identity_of_images_is_that_of_earlier_checkpoints(tmp_path, kind):
    source = ImageSource(write(tmp_path, kind), 16, copies=2, seed=7)
    assert source.identity() == {"kind": "images", "content": IMAGES_HASH, "size": 16, "copies": 2, "seed": 7}
    assert [source.store.image(number) for number in (3, 0)] == [CONTENTS[3], CONTENTS[0]] and len(source) == 8


@pytest.mark.parametrize("kind", ["lmdb", "words", "plain.parquet", "hub.parquet"])
def test_the_identity_of_words_is_that_of_earlier_checkpoints(tmp_path, kind):
    charset = CharacterTokenizer(CHARSETS["94"])
    assert WordSource(write(tmp_path, kind), charset, (32, 128)).identity() == {
        "kind": "words",
        "content": WORDS_HASH,
        "charset": charset.characters,
        "size": [32, 128],
        "max_length": 25,
        "copies": 0,
        "seed": 0,
    }


@pytest.mark.parametrize("kind", ["folder", "plain.parquet", "hub.parquet"])
def test_tables_of_pairs_have_the_same_rows_in_the_same_order(tmp_path, kind):
    path = write(tmp_path, kind)
    (table,) = open_tables([path], ["image"])
    assert [table.content(row, "image") for row in range(len(table))] == CONTENTS
    assert table.files() == ([path] if path.is_file() else [path / f"{number}.png" for number in range(4)])
    assert table.row_name(3) == (f"{kind}: row 4" if path.is_file() else "3.png")


def labelled(folder: Path) -> list[ImageTable]:
    """Images with a class each: a folder per class, and a column of numbers in row groups of three."""
    files = []
    for number, (content, name) in enumerate(zip(CONTENTS, ("d", "b", "b", "a"), strict=True)):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / f"{number}.png").write_bytes(content)
        files.append({"image": folder / name / f"{number}.png", "class": "ab_d".index(name)})
    parquet = write(folder, "hub.parquet")
    whole = ParquetTable(parquet, {"image": "image", "class": "class"}, whole=True)
    return [FilesTable(folder, files, ("image", "class")), ParquetTable(parquet, ["image", "class"]), whole]


def test_a_row_is_a_mapping_that_reads_what_is_asked_for(tmp_path):
    tables = labelled(tmp_path)
    for table in (*tables, JoinedTable(tables)):
        assert table.column("class")[:4] == [3, 1, 1, 0]
        row = pickle.loads(pickle.dumps(table)).row(2)
        assert dict(row) == {"image": CONTENTS[2], "class": 1} and list(row) == ["image", "class"]
        with pytest.raises(KeyError, match="mask"):
            row["mask"]
    assert len(JoinedTable(tables)) == 12 and JoinedTable(tables).image(11) == CONTENTS[3]
    (tmp_path / "a" / "3.png").unlink()
    assert tables[0].row(3)["class"] == 0, "a class is told without its image"


def test_a_missing_column_and_an_image_that_is_none_are_named(tmp_path):
    path = write(tmp_path, "plain.parquet")
    with pytest.raises(ImageError, match=r"plain\.parquet: no column 'mask'; it has image, text, class"):
        ParquetTable(path, ["image", "mask"])
    with pytest.raises(ImageError, match=r"column 'text' holds string, not bytes"):
        ParquetTable(path, {"image": "text"}, whole=True)
    with pytest.raises(ImageError, match=r"plain\.parquet: row 3: 'class' is int, not bytes"):
        ParquetTable(path, ["image", "class"]).content(2, "class")
