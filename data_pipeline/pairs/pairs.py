"""`PairSet`: raw images as the records of one task, before they become ids (docs/methods/delvm.md: pairs).

    rows of images        images/tables.py       photographs, and their labels, masks or targets where a task needs them
      -> item             one row, or the rows of a sequence
      -> views            the centre square, or six crops; and `copies` random squares beside each
      -> record           1, 2 or m images uint8 [S, S, 3]: one window cut from all of them (crops.py), then what
                          the task makes of them (tasks.py)

Record r belongs to item r // (views * (1 + copies)); the copies of a view follow it. Everything random comes from the
seed and the number of the row among *all* rows, so ranges of rows and numbers of copies are nested: the first 20 rows
are the same records whether 20 or 200 are taken, and 25 copies begin with the same 5.

Cost: 2 ms to decode a photograph, once per item when records are taken in order, and 0.3 to 3 ms a record.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_pipeline.errors import PairsError
from data_pipeline.images.tables import open_tables, read_image
from data_pipeline.pairs.corruption import Corruption
from data_pipeline.pairs.crops import Picture, Window, centre, cut, random_window, six_crop
from data_pipeline.pairs.tasks import (
    CAMVID_PALETTE,
    FROM_PHOTOGRAPH,
    Task,
    check_sizes,
    colour_classes,
    mask_colours,
    render_masks,
)
from tokenizer.inputs.image_table import ImageTable
from tokenizer.inputs.images import decode_class_indices

VIEWS = {"centre": 1, "six_crop": 6}
WEATHER, COLOURS, WINDOW = 0, 1, 2
"""What a random generator is for: part of its seed."""


@dataclass(frozen=True)
class PairsConfig:
    """How raw images become the records of one task."""

    task: Task
    """segmentation (photograph to colours), edges, colourisation, denoising, deraining, inversion: pairs made from
    photographs; files: ready-made pairs; single: one image; sequence: frames in order."""
    frames: int = 2
    """sequence: images of a record. The last record of an input ends with its last frame, so it may overlap the one
    before."""
    rows: tuple[int, int] | None = None
    """First row and one past the last of all inputs' rows, from 0; none: all."""
    input_column: str | None = None
    """Column of a Parquet file, or folder, of the photographs; none: image, and input for files."""
    target_column: str | None = None
    """The same of labels (segmentation) and of ready-made targets (files); none: label, and target for files. Labels
    are pictures of class numbers in CamVid's order, or lists of masks."""
    drawn_targets: bool = False
    """files: the targets are drawings in few colours, to be scaled without mixing them."""
    views: Literal["centre", "six_crop"] = "centre"
    """The square in the middle, or six that cover the picture: three along the long side, in two rows."""
    crop_share: float = 0.8
    """six_crop: side of a square, as a share of the short side."""
    copies: int = 0
    """Augmented copies beside each view: random squares of the whole picture, perhaps mirrored, of input and target
    alike. The originals stay."""
    smallest_crop: float = 0.5
    """Side of the smallest random square, as a share of the short side; the largest has all of it."""
    flip: float = 0.5
    """Probability that a copy is mirrored."""
    edge_gain: float = 4.0
    """edges: factor on Sobel's magnitude, which seldom exceeds 0.3 in photographs."""
    corruption: Corruption = field(default_factory=Corruption)
    """denoising, deraining: how strong noise and rain are."""
    seed: int = 0
    """Of copies, noise, rain and mask colours."""

    def __post_init__(self) -> None:
        if self.rows is not None and not 0 <= self.rows[0] < self.rows[1]:
            raise PairsError(f"pairs.rows: expected 0 <= first < stop, got {list(self.rows)}")
        for name, least in (("frames", 1), ("copies", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise PairsError(f"pairs.{name}: expected at least {least}, got {getattr(self, name)}")
        for name in ("crop_share", "smallest_crop"):
            if not 0 < getattr(self, name) <= 1:
                raise PairsError(f"pairs.{name}: expected a share above 0, at most 1, got {getattr(self, name)}")
        if not 0 <= self.flip <= 1:
            raise PairsError(f"pairs.flip: expected a probability from 0 to 1, got {self.flip}")
        if self.edge_gain <= 0:
            raise PairsError(f"pairs.edge_gain: expected a number above 0, got {self.edge_gain}")
        if self.target_column and self.task not in ("segmentation", "files"):
            raise PairsError(f"pairs.target_column: task {self.task} makes its targets itself; leave it out")

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> PairsConfig:
        """What `dataclasses.asdict` gave, as it lies in meta.json under inputs.pairs."""
        from common.command_line import build_config

        return build_config(cls, content)

    @property
    def columns(self) -> list[str]:
        """Columns that a row must have: input, and target where it is not made."""
        names = {"segmentation": ["image", "label"], "files": ["input", "target"]}.get(self.task, ["image"])
        given = [self.input_column, self.target_column][: len(names)]
        return [chosen or name for chosen, name in zip(given, names, strict=True)]

    @property
    def images_per_record(self) -> int:
        """1 for single images, `frames` for sequences, 2 for pairs."""
        return {"single": 1, "sequence": self.frames}.get(self.task, 2)

    @property
    def records_per_item(self) -> int:
        """Views and their copies."""
        return VIEWS[self.views] * (1 + self.copies)


@dataclass(frozen=True)
class Origin:
    """Where a record comes from."""

    item: int
    """Number of the row, or of the sequence, among those taken."""
    view: int
    """Number of the view."""
    copy: int
    """0: the view itself; else the number of its augmented copy."""


@dataclass(frozen=True)
class Stretch:
    """The rows of one table that are taken."""

    table: ImageTable
    """Where they lie."""
    first_row: int
    """First of them."""
    rows: int
    """How many."""
    first_number: int
    """Number of the first among all rows of all tables."""
    items: int
    """Items made of them."""

    def rows_of(self, item: int, frames: int) -> list[int]:
        """Rows of the item, from 0 within the stretch; the last item ends with the last row."""
        first = self.first_row + min(item * frames, self.rows - frames)
        return list(range(first, first + frames))


class PairSet:
    """The records of some inputs; `pair(i)` is a pure function of i.

    Args:
        config: the task, the views and the copies.
        inputs: Parquet files, image files or folders.
        image_size: S, pixels of a finished image's side.

    Raises:
        FileNotFoundError: an input does not exist.
        PairsError: a column is missing, there are fewer rows than asked for, or too few frames for a sequence.
    """

    def __init__(self, config: PairsConfig, inputs: Sequence[str | Path], image_size: int) -> None:
        self.config, self.image_size = config, image_size
        self.stretches = list(_stretches(config, open_tables(inputs, config.columns)))
        self._stops = np.cumsum([stretch.items for stretch in self.stretches], dtype=np.int64).tolist()
        self._last: tuple[int, list[Picture]] | None = None

    def __len__(self) -> int:
        return self.items * self.config.records_per_item

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    @property
    def items(self) -> int:
        """Rows, or sequences, that are taken."""
        return self._stops[-1]

    @property
    def palette(self) -> np.ndarray | None:
        """uint8 [C, 3]: the colours of the classes where targets are drawn in such, the last one void; else None."""
        return CAMVID_PALETTE if self.config.task == "segmentation" else None

    def origin(self, index: int) -> Origin:
        """Item, view and copy of record `index`. Raises PairsError when it is out of range."""
        if not 0 <= index < len(self):
            raise PairsError(f"record {index} asked for, but there are {len(self)}")
        item, place = divmod(int(index), self.config.records_per_item)
        return Origin(item, *divmod(place, 1 + self.config.copies))

    def records_of(self, item: int) -> range:
        """Numbers of the records of an item."""
        return range(item * self.config.records_per_item, (item + 1) * self.config.records_per_item)

    def name(self, index: int) -> str:
        """Record `index`, for messages and captions: row, view and copy."""
        origin = self.origin(index)
        stretch, rows = self._locate(origin.item)
        parts = [stretch.table.row_name(rows[0])]
        parts += [f"to {stretch.table.row_name(rows[-1])}"] if len(rows) > 1 else []
        parts += [f"view {origin.view + 1}"] if self.config.views != "centre" else []
        parts += [f"copy {origin.copy}"] if origin.copy else []
        return ", ".join(parts)

    def row_number(self, item: int) -> int:
        """The item's (first) row within its table, from 1: where to look for it."""
        return self._locate(item)[1][0] + 1

    def pair(self, index: int) -> list[np.ndarray]:
        """The images of record `index`, input first: uint8 [S, S, 3] each.

        Raises:
            ImageError: an image cannot be read.
            PairError: the images of the row differ in size, or a label is out of range; NoMasksError: it has no masks.
        """
        origin = self.origin(index)
        if self._last is None or self._last[0] != origin.item:
            self._last = origin.item, self._pictures(origin.item)
        pictures = self._last[1]
        number = self._number(origin.item)
        images = cut(pictures, self._window(origin, number, *pictures[0].pixels.shape[:2]), self.image_size)
        make = FROM_PHOTOGRAPH.get(self.config.task)
        if make is None:
            return images
        rng = np.random.default_rng([self.config.seed, WEATHER, number])
        return make(images[0], self.config.edge_gain, self.config.corruption, rng)

    def _window(self, origin: Origin, number: int, height: int, width: int) -> Window:
        config = self.config
        if origin.copy:
            rng = np.random.default_rng([config.seed, WINDOW, number, origin.view, origin.copy])
            return random_window(height, width, config.smallest_crop, config.flip, rng)
        if config.views == "six_crop":
            return six_crop(height, width, config.crop_share)[origin.view]
        return centre(height, width)

    def _pictures(self, item: int) -> list[Picture]:
        """The decoded images of an item, whole."""
        stretch, rows = self._locate(item)
        columns = self.config.columns

        def read(row: int, column: str) -> np.ndarray:
            return np.asarray(read_image(stretch.table, row, column))

        pictures = [Picture(read(row, columns[0])) for row in rows]
        if self.config.task == "files":
            pictures.append(Picture(read(rows[0], columns[1]), self.config.drawn_targets))
        elif self.config.task == "segmentation":
            pictures.append(Picture(self._label(stretch.table, rows[0], self._number(item)), drawn=True))
        check_sizes([picture.pixels.shape for picture in pictures], stretch.table.row_name(rows[0]))
        return pictures

    def _label(self, table: ImageTable, row: int, number: int) -> np.ndarray:
        """The classes or masks of a row in colours: uint8 [H, W, 3]."""
        column = self.config.columns[1]
        where = f"{table.row_name(row)}, {column}"
        content = table.content(row, column)
        if isinstance(content, bytes):
            return colour_classes(decode_class_indices(content, where), CAMVID_PALETTE, where)
        masks = [decode_class_indices(entry, f"{where} {place}") > 0 for place, entry in enumerate(content, start=1)]
        colours_M3 = mask_colours(len(masks), np.random.default_rng([self.config.seed, COLOURS, number]))
        return render_masks(masks, colours_M3, where)

    def _locate(self, item: int) -> tuple[Stretch, list[int]]:
        """The stretch of an item, and its rows in the stretch's table."""
        place = bisect_right(self._stops, item)
        stretch = self.stretches[place]
        frames = self.config.frames if self.config.task == "sequence" else 1
        return stretch, stretch.rows_of(item - self._stops[place] + stretch.items, frames)

    def _number(self, item: int) -> int:
        """Number of the item's first row among all rows of all inputs."""
        stretch, rows = self._locate(item)
        return stretch.first_number + rows[0] - stretch.first_row


def _stretches(config: PairsConfig, tables: Sequence[ImageTable]) -> list[Stretch]:
    total = sum(len(table) for table in tables)
    first, stop = config.rows or (0, total)
    if stop > total:
        raise PairsError(f"pairs.rows: asked for rows {first} to {stop - 1}, but the input has {total}")
    frames = config.frames if config.task == "sequence" else 1
    stretches = []
    before = 0
    for table in tables:
        low, high = max(first, before), min(stop, before + len(table))
        if rows := max(0, high - low):
            if rows < frames:
                raise PairsError(f"{table.path}: {rows} images make no sequence of {frames}; lower frames")
            stretches.append(Stretch(table, low - before, rows, low, -(-rows // frames)))
        before += len(table)
    if not stretches:
        raise PairsError(f"{', '.join(str(table.path) for table in tables)}: holds no image")
    return stretches
