"""What `python -m tokenizer visual train | import-vqgan | encode | decode | inspect` take and do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from tokenizer.inputs.image_table import ImageTable
    from tokenizer.visual.reconstruction import Reconstruction

SHOWN = 8
"""Images of a set in the picture that `inspect` writes."""


@dataclass(frozen=True)
class VisualTrainConfig:
    """Fits a k-means codebook of patches."""

    images: list[str]
    """Training images: files, folders of them, .parquet files."""
    output: str
    """Directory for visual_tokenizer.json and model.safetensors."""
    codes: int = 512
    """V, the number of codes."""
    patch: int = 8
    """Pixels of a patch's side; one code stands for one patch."""
    image_size: int = 64
    """Pixels of an image's side: the short side is resized to it, then the centre is cropped."""
    patches: int = 100_000
    """Patches to fit on at most, a random choice of all."""
    held_out: float = 0.1
    """Share of the images that is kept out of the fit, to measure on; 0: none."""
    column: str = "image"
    """Column of .parquet files."""
    seed: int = 0
    """Chooses patches and held-out images, and starts k-means."""

    def __post_init__(self) -> None:
        for name in ("codes", "patch", "image_size", "patches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.image_size % self.patch:
            raise ValueError(f"patch: {self.patch} does not divide image_size {self.image_size}")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out: must be at least 0 and below 1, got {self.held_out}")


@dataclass(frozen=True)
class VisualImportConfig:
    """Makes a tokenizer of published weights of the f16 VQGAN: 256 x 256 pixels, 16 x 16 of 8192 codes."""

    weights: str
    """The model.safetensors of openMUSE/vqgan-f16-8192-laion, or the same weights under diffusers' names."""
    output: str
    """Directory for visual_tokenizer.json and model.safetensors."""


@dataclass(frozen=True)
class VisualEncodeConfig:
    """Turns images into ids: one file with `ids`, int64 [images, grid * grid], row i for the i-th image."""

    tokenizer: str
    """Directory of a visual tokenizer, or a run of one."""
    images: list[str]
    """Files, folders of them, .parquet files."""
    output: str
    """File to write: .npz or .safetensors."""
    column: str = "image"
    """Column of .parquet files."""

    def __post_init__(self) -> None:
        check_ids_file("output", self.output)


@dataclass(frozen=True)
class VisualDecodeConfig:
    """Turns ids back into images: one PNG file for every row of ids."""

    tokenizer: str
    """Directory of a visual tokenizer, or a run of one."""
    ids: str
    """File that `encode` wrote, or any .npz or .safetensors with integers `ids` of shape [images, grid * grid]."""
    output: str
    """Folder for 000000.png, 000001.png, ..."""

    def __post_init__(self) -> None:
        check_ids_file("ids", self.ids)


@dataclass(frozen=True)
class VisualInspectConfig:
    """Measures what a visual tokenizer loses on sets of images, and how much of its codebook they use."""

    tokenizer: str
    """Directory of a visual tokenizer, or a run of one."""
    images: list[str]
    """One or more sets, each a file, folder or .parquet file; NAME=PATH names a set."""
    output: str
    """Folder for inspection.json and one NAME.png each: originals above, reconstructions below."""
    limit: int | None = None
    """Images per set; None takes all."""
    column: str = "image"
    """Column of .parquet files."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit: must be at least 1, got {self.limit}")
        names = [name for name, _ in self.sets()]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"images: the name {repeated[0]!r} is there twice; write NAME=PATH")
        if unfit := [name for name in names if not name or Path(name).name != name]:
            raise ValueError(f"images: the name {unfit[0]!r} must be fit for a file; write NAME=PATH")

    def sets(self) -> list[tuple[str, str]]:
        """Name and path of every set; without a name it is the file's, after its folder's: camvid-val."""
        pairs = []
        for entry in self.images:
            name, equals, path = entry.partition("=")
            where = Path(entry)
            pairs.append((name, path) if equals else ("-".join((*where.parts[-2:-1], where.stem)).strip("-/"), entry))
        return pairs


def check_ids_file(field: str, path: str) -> None:
    """Raises ValueError for a file of ids of another kind."""
    if Path(path).suffix not in (".npz", ".safetensors"):
        raise ValueError(f"{field}: {path} must end in .npz or .safetensors")


@dataclass(frozen=True)
class Report:
    """What a command says at its end."""

    lines: list[str]

    def to_text(self) -> str:
        """For the terminal."""
        return "\n".join(self.lines)


def train(config: VisualTrainConfig) -> Report:
    """Fits a codebook, measures it on images that it has not seen, and writes it.

    Raises:
        ImageError: images that cannot be read.
        VisualTokenizerError: too few distinct patches.
    """
    import numpy as np

    from tokenizer.visual.patches import fit_patches
    from tokenizer.visual.reconstruction import measure_reconstruction

    store = _open(config.images, config.column)
    order = np.random.default_rng(config.seed).permutation(len(store))
    held = int(config.held_out * len(store))
    kept_out, fitted = sorted(order[:held].tolist()), sorted(order[held:].tolist())
    read = _pixels(store, fitted, config.image_size, "read")
    tokenizer = fit_patches(read, config.image_size, config.codes, config.patch, config.seed, config.patches)
    tokenizer.save(Path(config.output))
    size, grid = tokenizer.image_size, tokenizer.grid
    lines = [
        f"{config.output}: {tokenizer.vocab_size} codes, hash {tokenizer.hash[:12]}",
        f"  {size} x {size} pixels, {grid} x {grid} = {tokenizer.tokens_per_image} tokens an image",
    ]
    for name, numbers in (("training", fitted[:: max(1, len(fitted) // max(held, 1))]), ("held-out", kept_out)):
        if held:
            lines.append(f"  {name} {measure_reconstruction(tokenizer, _pixels(store, numbers, size, name)).to_text()}")
    return Report(lines)


def import_vqgan(config: VisualImportConfig) -> Report:
    """Reads weights and writes them as a tokenizer.

    Raises:
        ModelConfigError: the file is missing, damaged or of another network, or diffusers is not installed.
    """
    from arch.vq.vqgan import read_vqgan_weights
    from tokenizer.visual.network import NetworkTokenizer

    tokenizer = NetworkTokenizer(read_vqgan_weights(config.weights))
    tokenizer.save(Path(config.output))
    return Report([f"{config.output}: {tokenizer.vocab_size:,} codes, hash {tokenizer.hash[:12]}"])


def encode(config: VisualEncodeConfig) -> Report:
    """Encodes images in batches. Raises as `load_visual_tokenizer` and `square_pixels` do."""
    import numpy as np

    from tokenizer.visual.ids_file import write_ids
    from tokenizer.visual.load import load_visual_tokenizer
    from tokenizer.visual.reconstruction import in_batches

    tokenizer = load_visual_tokenizer(config.tokenizer)
    store = _open(config.images, config.column)
    batches = in_batches(_pixels(store, range(len(store)), tokenizer.image_size, "encode"))
    ids_BN = np.concatenate([tokenizer.encode(batch) for batch in batches])
    write_ids(Path(config.output), ids_BN, tokenizer.hash)
    return Report([f"{config.output}: {len(ids_BN):,} images, {ids_BN.shape[1]} ids each"])


def decode(config: VisualDecodeConfig) -> Report:
    """Decodes ids. Raises VisualTokenizerError for ids that are not this tokenizer's."""
    from PIL import Image
    from tqdm import tqdm

    from tokenizer.visual.ids_file import read_ids
    from tokenizer.visual.load import load_visual_tokenizer
    from tokenizer.visual.reconstruction import BATCH

    tokenizer = load_visual_tokenizer(config.tokenizer)
    ids_BN = read_ids(Path(config.ids), tokenizer)
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(ids_BN), desc="decode", unit="image") as bar:
        for start in range(0, len(ids_BN), BATCH):
            for number, pixels in enumerate(tokenizer.decode(ids_BN[start : start + BATCH]), start=start):
                Image.fromarray(pixels).save(folder / f"{number:06d}.png")
                bar.update()
    return Report([f"{config.output}: {len(ids_BN):,} images"])


def inspect(config: VisualInspectConfig) -> Report:
    """Measures every set. Raises as `load_visual_tokenizer` and `square_pixels` do."""
    from tokenizer.visual.comparison import Comparison
    from tokenizer.visual.load import load_visual_tokenizer
    from tokenizer.visual.reconstruction import measure_reconstruction

    tokenizer = load_visual_tokenizer(config.tokenizer)
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Reconstruction] = {}
    for name, path in config.sets():
        store = _open([path], config.column)
        numbers = range(len(store) if config.limit is None else min(config.limit, len(store)))
        comparison = Comparison(SHOWN)
        pixels = _pixels(store, numbers, tokenizer.image_size, name)
        found[name] = measure_reconstruction(tokenizer, pixels, comparison.add)
        comparison.draw(folder / f"{name}.png", f"{name}: {found[name].to_text()}")
    content: dict[str, Any] = {
        "tokenizer": config.tokenizer,
        "hash": tokenizer.hash,
        **tokenizer.description(),
        "sets": {name: asdict(result) for name, result in found.items()},
    }
    (folder / "inspection.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    head = f"{config.tokenizer}: kind {tokenizer.kind}, {tokenizer.vocab_size:,} codes, hash {tokenizer.hash[:12]}"
    return Report([head, *(f"  {name}: {result.to_text()}" for name, result in found.items())])


def _open(images: list[str], column: str) -> ImageTable:
    from tokenizer.inputs.image_stores import open_images

    return open_images(images, column)


def _pixels(store: ImageTable, numbers: Any, size: int, what: str) -> Iterator[np.ndarray]:
    from tqdm import tqdm

    from tokenizer.inputs.image_stores import square_pixels

    with tqdm(numbers, desc=what, unit="image") as bar:  # closed before an error is printed
        for number in bar:
            yield square_pixels(store, number, size)
