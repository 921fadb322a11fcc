"""Fonts of this machine, and which characters each of them can draw."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
from fontTools.ttLib import TTCollection, TTFont, TTLibError
from matplotlib.font_manager import findSystemFonts
from PIL import ImageFont

from data_pipeline.errors import SourceError

SYMBOL_FONTS = (
    "lastresort",
    "emoji",
    "symbol",
    "stixsiz",
    "stixnonuni",
    "cmex",
    "cmsy",
    "cmmi",
    "cmr",
    "cmtt",
    "cmss",
    "cmb",
)
"""Parts of the names of fonts whose letters are not text in the usual encoding."""


def find_fonts(folders: Sequence[str] = ()) -> list[Path]:
    """TrueType and OpenType files: of the given folders, or else of the system and of matplotlib, which brings some.

    Sorted by file name, so that the same fonts in other places are in the same order.

    Raises:
        SourceError: there are none.
    """
    if folders:
        found = [path for folder in folders for path in findSystemFonts([folder])]
    else:
        found = [*findSystemFonts(), *findSystemFonts([str(Path(matplotlib.get_data_path()) / "fonts" / "ttf")])]
    fonts: dict[str, Path] = {}
    for path in sorted(map(Path, found), key=lambda path: (path.name, str(path))):
        if not any(part in path.name.lower() for part in SYMBOL_FONTS):
            fonts.setdefault(path.name, path)
    if not fonts:
        raise SourceError(f"no fonts found in {', '.join(folders) or 'the system'}; install some, or name a folder")
    return list(fonts.values())


@lru_cache(maxsize=1024)
def drawable(path: Path) -> frozenset[int]:
    """Code points that a font draws; none for a file that is damaged."""
    try:
        if path.suffix.lower() in (".ttc", ".otc"):
            with TTCollection(path, lazy=True) as collection:
                return frozenset(collection.fonts[0].getBestCmap() or ())
        with TTFont(path, lazy=True) as font:
            return frozenset(font.getBestCmap() or ())
    except (TTLibError, OSError, KeyError, AssertionError):
        return frozenset()


@lru_cache(maxsize=512)
def open_font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    """A font at a size in pixels."""
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


class Fonts:
    """A list of fonts that knows which of them draw a text."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self._common = frozenset.intersection(*map(drawable, self.paths))

    def drawing(self, text: str) -> list[Path]:
        """Those fonts that draw every character of a text."""
        needed = frozenset(map(ord, text))
        if needed <= self._common:
            return self.paths
        return [path for path in self.paths if needed <= drawable(path)]
