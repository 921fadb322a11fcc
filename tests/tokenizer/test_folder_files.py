"""Folders of images follow the rule of folders of text: by whatever command they are read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.folder_files import find_files, readable
from data_pipeline.images.tables import open_tables
from data_pipeline.words.backgrounds import read_photographs
from tests.tokenizer.image_cases import as_png, draw_images, write_parquet
from tokenizer.inputs.image_stores import open_images

PNGS = [as_png(image) for image in draw_images(4, 80)]


def by_store(folder: Path) -> list[bytes]:
    """Visual tokenizers, sample-images, images without labels."""
    store = open_images(folder)
    return [store.image(number) for number in range(len(store))]


def by_tables(folder: Path) -> list[bytes]:
    """Pairs that are made from photographs."""
    tables = open_tables([folder], ["image"])
    return [table.content(row, "image") for table in tables for row in range(len(table))]


def by_photographs(folder: Path) -> list[bytes]:
    """Backgrounds of drawn words."""
    return [as_png(np.asarray(image)) for image in read_photographs([str(folder)])]


READERS: list[Callable[[Path], list[bytes]]] = [by_store, by_tables, by_photographs]


@pytest.mark.parametrize("read", READERS)
def test_links_inner_folders_and_any_case_are_taken_and_companions_are_not(read, tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "photographs", tmp_path / "elsewhere"
    for path in (folder / "inner", elsewhere, folder / "__MACOSX", folder / ".cache", folder / "blobs"):
        path.mkdir(parents=True)
    (folder / "A.PNG").write_bytes(PNGS[0])
    (folder / "inner" / "b.jfif").write_bytes(PNGS[1])
    (elsewhere / "c.png").write_bytes(PNGS[2])
    (elsewhere / "loop").symlink_to(folder)
    (folder / "more").symlink_to(elsewhere)
    (folder / ".blob").write_bytes(PNGS[3])
    (folder / "d.png").symlink_to(".blob")
    for name in ("._A.PNG", "__MACOSX/A.png", ".cache/x.png", "Thumbs.db", "A.PNG.part"):
        (folder / name).write_bytes(b"\0\5")
    (folder / "blobs").rmdir()
    expected = sorted(PNGS)
    if read is by_tables:  # folders are sequences of their own there, and each is entered by name
        (elsewhere / "loop").unlink()
    assert sorted(read(folder)) == sorted(expected)


@pytest.mark.parametrize("read", READERS)
def test_links_to_nowhere_and_folders_of_something_else_are_refused(read, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNGS[0])
    (tmp_path / "b.heic").write_bytes(PNGS[1])
    with pytest.raises(ValueError, match=r"1 of 2 files are not used \(b\.heic; .* more than 10%"):
        read(tmp_path)
    (tmp_path / "b.heic").unlink()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises((ValueError, OSError), match=r"gone\.png: a link to .*nowhere\.png, which does not exist"):
        read(tmp_path)


def test_pairs_in_folders_belong_together_by_their_path(tmp_path: Path, capsys) -> None:
    for column, number in (("input", 0), ("target", 1)):
        (tmp_path / column / "city").mkdir(parents=True)
        (tmp_path / column / "city" / "a.png").write_bytes(PNGS[number])
        (tmp_path / column / "a.PNG").write_bytes(PNGS[number + 2])
        (tmp_path / column / "._a.png").write_bytes(b"\0")
    [table] = open_tables([tmp_path], ["input", "target"])
    rows = [[table.content(row, column) for column in ("input", "target")] for row in range(len(table))]
    assert sorted(rows) == sorted([[PNGS[0], PNGS[1]], [PNGS[2], PNGS[3]]])
    (tmp_path / "input" / "a.jpg").write_bytes(PNGS[0])
    with pytest.raises(ValueError, match="have one name"):
        open_tables([tmp_path], ["input", "target"])


def test_images_and_tables_may_lie_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNGS[0])
    write_parquet(tmp_path / "b.PARQUET", PNGS[1:3])
    (tmp_path / "c.png").write_bytes(PNGS[3])
    assert by_store(tmp_path) == PNGS
    assert sorted(by_tables(tmp_path)) == sorted(PNGS)


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a").mkdir()

    def refuse(path: Path):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", refuse)
        with pytest.raises(PermissionError, match="Permission denied"):
            find_files(tmp_path, (".png",))


def test_names_can_be_printed_and_stored() -> None:
    assert readable("caf\udce9/文\n") == r"caf\xe9/文\x0a"


def test_a_link_that_is_named_itself_is_read_by_its_own_suffix(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(PNGS[0])
    write_parquet(tmp_path / "blob2", PNGS[1:3])
    (tmp_path / "a.png").symlink_to("blob")
    (tmp_path / "b.parquet").symlink_to("blob2")
    for read in (by_store, by_tables):
        assert read(tmp_path / "a.png") == PNGS[:1]
        assert read(tmp_path / "b.parquet") == PNGS[1:3]
