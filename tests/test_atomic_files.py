"""Folders and files that are whole or absent: what was there before is lost in no moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.atomic_files import appearing_folder, write_json, write_whole


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder that holds a result of before."""
    place = tmp_path / "made"
    place.mkdir()
    (place / "a").write_text("before")
    return place


def test_a_folder_takes_the_place_of_the_one_before(place: Path):
    with appearing_folder(place) as partial:
        (partial / "b").write_text("after")
        assert content(place) == {"a": "before"}
    assert content(place) == {"b": "after"} and [path.name for path in place.parent.iterdir()] == ["made"]


def test_a_folder_that_fails_leaves_what_was_there(place: Path):
    with pytest.raises(RuntimeError, match="no luck"), appearing_folder(place) as partial:
        (partial / "b").write_text("half")
        raise RuntimeError("no luck")
    assert content(place) == {"a": "before"} and [path.name for path in place.parent.iterdir()] == ["made"]


def test_a_folder_that_cannot_take_the_place_leaves_what_was_there(place: Path, monkeypatch: pytest.MonkeyPatch):
    replace = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if self.name == ".made.partial":
            raise OSError("no space")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space"), appearing_folder(place) as partial:
        (partial / "b").write_text("after")
    assert content(place) == {"a": "before"}


def test_what_a_kill_between_two_renames_left_aside_is_found_again(place: Path):
    place.replace(place.with_name(".made.old"))
    with pytest.raises(RuntimeError), appearing_folder(place):
        assert content(place) == {"a": "before"}
        raise RuntimeError("stopped again")
    assert content(place) == {"a": "before"}


def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path):
    write_json(tmp_path / "deep" / "a.json", {"a": "é"})
    assert (tmp_path / "deep" / "a.json").read_text(encoding="utf-8") == '{\n "a": "é"\n}\n'
    write_whole(tmp_path / "deep" / "a.json", b"\x00")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.json"]
    assert (tmp_path / "deep" / "a.json").read_bytes() == b"\x00"
