"""Pictures that evaluations leave beside their numbers: FOLDER/*.png, and captions in FOLDER/captions.json.

The report embeds them. A picture without a caption is called by its file's name.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import NamedTuple

from common.untrusted_files import read_json

CAPTIONS = "captions.json"
MAX_PICTURE_BYTES = 4_000_000
"""Larger files are named in the report, not embedded: a page has to open at once."""
PNG_BEGINS = b"\x89PNG\r\n\x1a\n"


class Picture(NamedTuple):
    """A PNG file, ready for a page that needs no other file."""

    name: str
    """File name without its ending."""
    caption: str
    data_uri: str


def write_caption(picture: Path, caption: str) -> None:
    """Says what a picture shows, in its folder's captions.json; captions of other pictures stay."""
    path = picture.parent / CAPTIONS
    captions = _read_captions(path) | {picture.name: caption}
    path.write_text(json.dumps(dict(sorted(captions.items())), indent=1, ensure_ascii=False), encoding="utf-8")


def read_pictures(folder: Path) -> tuple[list[Picture], list[str]]:
    """The pictures of a folder, sorted by name, and a sentence about each that cannot be shown."""
    pictures, problems = [], []
    try:
        captions = _read_captions(folder / CAPTIONS)
    except ValueError as error:
        captions = {}
        problems.append(f"{folder.name}/{CAPTIONS} cannot be read: {error}")
    for path in sorted(folder.glob("*.png")):
        if (size := path.stat().st_size) > MAX_PICTURE_BYTES:
            problems.append(f"{folder.name}/{path.name} is too large for this page ({size:,} bytes)")
        elif not (content := path.read_bytes()).startswith(PNG_BEGINS):
            problems.append(f"{folder.name}/{path.name} is not a PNG file")
        else:
            caption = str(captions.get(path.name) or path.stem.replace("_", " ").replace("-", " ").capitalize())
            encoded = base64.b64encode(content).decode("ascii")
            pictures.append(Picture(path.stem, caption, f"data:image/png;base64,{encoded}"))
    return pictures, problems


def _read_captions(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    captions = read_json(path, ValueError)
    if not isinstance(captions, dict):
        raise ValueError("expected an object of file names and captions")
    return captions
