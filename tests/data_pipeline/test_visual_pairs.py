"""PairSet: records are a pure function of their number; input and target never drift apart; bad rows are named."""

import json
import pickle
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.errors import NoMasksError, PairError, PairsError
from data_pipeline.pairs.corruption import Corruption
from data_pipeline.pairs.crops import Picture, Window, centre, cut, random_window, six_crop
from data_pipeline.pairs.pairs import PairsConfig, PairSet
from data_pipeline.pairs.tasks import CAMVID_PALETTE, edges, render_masks
from tokenizer.inputs.images import ImageError

from .visual_cases import classes, encoded, huge_png, photograph, write_folder, write_photographs, write_table

S = 16
PAIRS = ["segmentation", "edges", "colourisation", "denoising", "deraining", "inversion"]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Seven photographs of 36 x 24 pixels with labels, in three row groups."""
    return write_photographs(tmp_path / "photographs.parquet")


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def all_records(pairs: PairSet) -> list[list[np.ndarray]]:
    return [pairs.pair(index) for index in range(len(pairs))]


@pytest.mark.parametrize("task", [*PAIRS, "single", "sequence"])
def test_records_are_a_pure_function_of_their_number(photographs: Path, task: str) -> None:
    config = PairsConfig(task, copies=1, seed=3)
    pairs = PairSet(config, [photographs], S)
    records = all_records(pairs)
    assert all(len(record) == config.images_per_record for record in records)
    assert all(image.shape == (S, S, 3) and image.dtype == np.uint8 for record in records for image in record)
    again = pickle.loads(pickle.dumps(pairs))
    for index in np.random.default_rng(0).permutation(len(pairs)).tolist():
        assert same(again.pair(index), records[index]), "neither the process nor the order of calls matters"
    other = PairSet(PairsConfig(task, copies=1, seed=4), [photographs], S)
    changed = [not same(other.pair(index), records[index]) for index in range(len(pairs))]
    assert np.mean(changed[1::2]) > 0.9, "copies follow the seed; few windows of small pictures coincide"
    assert any(changed[0::2]) == (task in ("denoising", "deraining"))


def test_every_record_has_its_own_number_name_and_place(photographs: Path) -> None:
    pairs = PairSet(PairsConfig("edges", views="six_crop", copies=2), [photographs], S)
    assert len(pairs) == 7 * 6 * 3 and pairs.items == 7
    names = [pairs.name(index) for index in range(len(pairs))]
    assert len(set(names)) == len(names)
    assert names[:2] == ["photographs.parquet: row 1, view 1", "photographs.parquet: row 1, view 1, copy 1"]
    origins = [pairs.origin(index) for index in range(len(pairs))]
    assert [(o.item, o.view, o.copy) for o in origins] == [
        (item, view, copy) for item in range(7) for view in range(6) for copy in range(3)
    ]
    assert [index for item in range(7) for index in pairs.records_of(item)] == list(range(len(pairs)))
    with pytest.raises(PairsError, match="record 126 asked for, but there are 126"):
        pairs.pair(126)


def test_originals_are_never_augmented(photographs: Path) -> None:
    """The re-sampling arm has no copies; its records are exactly the originals of the augmented set."""
    plain = PairSet(PairsConfig("deraining", seed=1), [photographs], S)
    augmented = PairSet(PairsConfig("deraining", seed=1, copies=3), [photographs], S)
    assert all(plain.origin(index).copy == 0 for index in range(len(plain)))
    originals = [index for index in range(len(augmented)) if augmented.origin(index).copy == 0]
    assert [same(plain.pair(n), augmented.pair(index)) for n, index in enumerate(originals)] == [True] * 7
    middle = photograph(0)[:, 6:30]
    expected = np.asarray(Image.fromarray(middle).resize((S, S), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(plain.pair(0)[1] - expected).max() <= 1


@pytest.mark.parametrize("task", ["denoising", "segmentation"])
def test_ranges_of_rows_and_copies_are_nested(photographs: Path, task: str) -> None:
    whole = PairSet(PairsConfig(task, copies=5), [photographs], S)
    part = PairSet(PairsConfig(task, copies=2, rows=(2, 6)), [photographs], S)
    assert len(part) == 4 * 3 and part.name(0) == "photographs.parquet: row 3"
    for index in range(len(part)):
        origin = part.origin(index)
        assert same(part.pair(index), whole.pair((origin.item + 2) * 6 + origin.copy))


def test_rows_run_through_all_inputs(tmp_path: Path) -> None:
    for number, count in enumerate((3, 2, 4)):
        write_photographs(tmp_path / "all" / f"{number}.parquet", count, first=10 * number)
    numbers = [0, 1, 2, 10, 11, 20, 21, 22, 23]
    pairs = PairSet(PairsConfig("single", rows=(1, 8)), [tmp_path / "all"], S)
    for index, number in enumerate(numbers[1:8]):
        expected = cut([Picture(photograph(number))], centre(24, 36), S)
        assert same(pairs.pair(index), expected)
    assert len(pairs) == 7
    with pytest.raises(PairsError, match="rows: asked for rows 1 to 9, but the input has 9"):
        PairSet(PairsConfig("single", rows=(1, 10)), [tmp_path / "all"], S)


# One window for input and target


def test_inverted_pairs_stay_inverted_in_every_copy(photographs: Path) -> None:
    """For y = 1 - x every augmented pair satisfies y' = 1 - x' exactly."""
    pairs = PairSet(PairsConfig("inversion", copies=20), [photographs], S)
    assert all(np.array_equal(target, 255 - image) for image, target in all_records(pairs))


@given(seed=st.integers(0, 2**32), height=st.integers(4, 40), width=st.integers(4, 40))
def test_one_window_keeps_ready_made_pairs_together_and_two_do_not(seed: int, height: int, width: int) -> None:
    image = photograph(seed, (height, width))
    rng = np.random.default_rng(seed)
    window = random_window(height, width, 0.5, 0.5, rng)
    assert window.top + window.side <= height and window.left + window.side <= width
    assert 0.5 * min(height, width) - 0.5 <= window.side <= min(height, width)
    first, second = cut([Picture(image), Picture(255 - image)], window, S)
    assert np.abs(first.astype(int) + second - 255).max() <= 2  # rows, then columns are rounded
    drawn, inverse = cut([Picture(image, True), Picture(255 - image, True)], window, S)
    assert np.array_equal(drawn, 255 - inverse)
    other = Window(window.top, window.left, window.side, not window.flip)
    apart = cut([Picture(255 - image)], other, S)[0]
    assert np.abs(first.astype(int) + apart - 255).max() > 2


def test_labels_keep_their_colours_and_their_place(photographs: Path) -> None:
    pairs = PairSet(PairsConfig("segmentation", views="six_crop", copies=4), [photographs], S)
    palette = {tuple(colour) for colour in CAMVID_PALETTE.tolist()}
    assert all(set(map(tuple, target.reshape(-1, 3).tolist())) <= palette for _, target in all_records(pairs))
    assert np.array_equal(pairs.palette, CAMVID_PALETTE) and len(palette) == 12
    assert PairSet(PairsConfig("edges"), [photographs], S).palette is None
    # A photograph in the colours of its labels shows what its target shows, wherever the window lies.
    number = classes(0)
    window = random_window(24, 36, 0.5, 1.0, np.random.default_rng(0))
    label, photo = cut([Picture(CAMVID_PALETTE[number], True), Picture(CAMVID_PALETTE[number])], window, window.side)
    assert np.array_equal(label, photo)
    square = CAMVID_PALETTE[number][window.top :, window.left :][: window.side, : window.side]
    assert np.array_equal(label, square[:, ::-1])


@given(height=st.integers(2, 300), width=st.integers(2, 300), share=st.floats(0.1, 1))
def test_six_crops_touch_the_corners(height: int, width: int, share: float) -> None:
    windows = six_crop(height, width, share)
    side = max(1, round(share * min(height, width)))
    assert len(windows) == 6 and {window.side for window in windows} == {side}
    corners = {(top, left) for top in (0, height - side) for left in (0, width - side)}
    assert corners <= {(window.top, window.left) for window in windows}
    along, across = ("left", "top") if width >= height else ("top", "left")
    long = max(height, width) - side
    assert sorted({getattr(window, along) for window in windows}) == sorted({0, long // 2, long})
    assert sorted({getattr(window, across) for window in windows}) == sorted({0, min(height, width) - side})


def test_six_crops_are_the_same_squares_of_photograph_and_label(tmp_path: Path) -> None:
    number = classes(3)
    table = write_table(
        tmp_path / "a.parquet", image=[encoded(CAMVID_PALETTE[number])], label=[encoded(number)], row_group_size=1
    )
    pairs = PairSet(PairsConfig("segmentation", views="six_crop", crop_share=2 / 3), [table], S)
    for index, window in enumerate(six_crop(24, 36, 2 / 3)):
        image, target = pairs.pair(index)
        assert window.side == S and np.array_equal(image, target)
        assert np.array_equal(image, CAMVID_PALETTE[number][window.top :, window.left :][:S, :S])


# What the tasks make


def test_masks_are_painted_from_large_to_small() -> None:
    """An overlapped pixel has the smallest mask's colour, and nothing wraps around."""
    large, middle, small = np.zeros((3, 8, 8), bool)
    large[:, :7], middle[1:6, 1:6], small[2:4, 2:8] = True, True, True
    colours = np.array([[200, 200, 200], [150, 100, 250], [90, 255, 99]], np.uint8)
    expected = np.zeros((8, 8, 3), np.uint8)
    for mask, colour in ((large, 0), (middle, 1), (small, 2)):
        expected[mask] = colours[colour]
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        masks = [(large, middle, small)[place] for place in order]
        assert np.array_equal(render_masks(masks, colours[order], "x"), expected)
    with pytest.raises(NoMasksError, match="row 7: no masks"):
        render_masks([], colours, "row 7")
    with pytest.raises(PairError, match="x: masks of 8 x 8 and of 3 x 8 pixels"):
        render_masks([large, large[:, :3]], colours, "x")


def test_lists_of_masks_become_targets(tmp_path: Path) -> None:
    masks = [(classes(number) == 0).astype(np.uint8) * 255 for number in range(3)]
    table = write_table(
        tmp_path / "a.parquet", image=[encoded(photograph(0))] * 2, masks=[[encoded(mask) for mask in masks], []]
    )
    pairs = PairSet(PairsConfig("segmentation", target_column="masks", copies=1), [table], S)
    covered = cut(
        [Picture(np.repeat(np.any(masks, axis=0)[:, :, None], 3, 2).astype(np.uint8), True)], centre(24, 36), S
    )
    assert np.array_equal(pairs.pair(0)[1].any(axis=2), covered[0].any(axis=2))
    assert len(np.unique(pairs.pair(0)[1].reshape(-1, 3), axis=0)) <= 4
    with pytest.raises(NoMasksError, match=r"a\.parquet: row 2, masks: no masks"):
        pairs.pair(2)


def test_targets_are_what_the_task_says(photographs: Path) -> None:
    clean = PairSet(PairsConfig("single"), [photographs], S).pair(0)[0]
    made = {task: PairSet(PairsConfig(task), [photographs], S).pair(0) for task in PAIRS}
    assert all(np.array_equal(made[task][0], clean) for task in ("segmentation", "edges", "inversion"))
    assert all(np.array_equal(made[task][1], clean) for task in ("colourisation", "denoising", "deraining"))
    grey = made["colourisation"][0]
    assert (grey == grey[:, :, :1]).all()
    assert (made["deraining"][0] >= clean).all() and (made["deraining"][0] > clean).any(), "rain only adds light"
    residual = made["denoising"][0].astype(float) - clean
    assert 5 < residual.std() < 55
    step = np.zeros((S, S, 3), np.uint8)
    step[:, 8:] = 255
    found = edges(step, 4.0)
    assert found[:, 7:9].min() == 255 and found[:, :3].max() == found[:, -3:].max() == 0


def test_weather_belongs_to_the_photograph(tmp_path: Path) -> None:
    """The same rain falls on every copy, another one on every photograph."""
    black = encoded(np.zeros((24, 36, 3), np.uint8))
    table = write_table(tmp_path / "a.parquet", image=[black] * 4)
    pairs = PairSet(PairsConfig("deraining", copies=2, flip=0, smallest_crop=1), [table], 32)
    rain = [pairs.pair(index)[0] for index in range(len(pairs))]
    assert all(np.array_equal(rain[3 * item], rain[3 * item + copy]) for item in range(4) for copy in (1, 2))
    assert len({image.tobytes() for image in rain}) == 4


def test_sequences_are_frames_in_order_and_lose_none(tmp_path: Path) -> None:
    for name, count in (("a", 5), ("b", 3)):
        write_folder(tmp_path / "clips" / name, [encoded(photograph(10 * count + n)) for n in range(count)])
    pairs = PairSet(PairsConfig("sequence", frames=3), [tmp_path / "clips"], S)
    frames = {
        number: cut([Picture(photograph(number))], centre(24, 36), S)[0] for number in [*range(50, 55), *range(30, 33)]
    }
    expected = [[50, 51, 52], [52, 53, 54], [30, 31, 32]]
    assert len(pairs) == 3 and pairs.name(1) == "002.png, to 004.png"
    for index, numbers in enumerate(expected):
        assert same(pairs.pair(index), [frames[number] for number in numbers])
    with pytest.raises(PairsError, match=r"b: 3 images make no sequence of 4; lower frames"):
        PairSet(PairsConfig("sequence", frames=4), [tmp_path / "clips"], S)


def test_ready_made_pairs_come_from_columns_or_folders(tmp_path: Path) -> None:
    inputs, targets = ([encoded(photograph(n + shift)) for n in range(4)] for shift in (0, 50))
    table = write_table(
        tmp_path / "a.parquet", rainy=inputs, clean=[{"bytes": entry, "path": None} for entry in targets]
    )
    write_folder(tmp_path / "folder" / "input", inputs)
    write_folder(tmp_path / "folder" / "target", targets)
    by_column = PairSet(PairsConfig("files", input_column="rainy", target_column="clean", copies=2), [table], S)
    by_folder = PairSet(PairsConfig("files", copies=2), [tmp_path / "folder"], S)
    assert len(by_column) == len(by_folder) == 12
    assert all(same(a, b) for a, b in zip(all_records(by_column), all_records(by_folder), strict=True))
    assert np.array_equal(by_folder.pair(0)[1], cut([Picture(photograph(50))], centre(24, 36), S)[0])
    drawn = PairSet(PairsConfig("files", copies=2, drawn_targets=True), [tmp_path / "folder"], S)
    values = set(map(tuple, photograph(50).reshape(-1, 3).tolist()))
    assert set(map(tuple, drawn.pair(1)[1].reshape(-1, 3).tolist())) <= values
    (tmp_path / "folder" / "target" / "002.png").unlink()
    with pytest.raises(PairsError, match=r"'002' is in only one of input/ and target/ \(1 such files\)"):
        PairSet(PairsConfig("files"), [tmp_path / "folder"], S)


# What is refused


BROKEN = {
    "no bytes": b"",
    "truncated": encoded(np.tile(photograph(0), (5, 5, 1)), "JPEG")[:-3000],
    "huge": huge_png(50_000, 50_000),
    "text": b"hello",
    "missing": None,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_unreadable_images_are_named(tmp_path: Path, kind: str) -> None:
    good = encoded(photograph(0))
    pairs = PairSet(PairsConfig("edges"), [write_table(tmp_path / "a.parquet", image=[good, BROKEN[kind], good])], S)
    pairs.pair(0), pairs.pair(2)
    with pytest.raises(ImageError, match=r"a\.parquet: row 2"):
        pairs.pair(1)


def test_photographs_of_every_mode_and_labels_of_every_depth(tmp_path: Path) -> None:
    image = Image.fromarray(photograph(0))
    sixteen = Image.fromarray(photograph(0)[:, :, 0].astype(np.uint16) << 8)
    contents = [
        encoded(image.convert("CMYK"), "JPEG"),
        encoded(image.convert("P")),
        encoded(sixteen),
        encoded(image, "WEBP"),
    ]
    pairs = PairSet(PairsConfig("inversion"), [write_table(tmp_path / "a.parquet", image=contents)], S)
    assert len({image.tobytes() for image, _ in all_records(pairs)}) == 4

    number = classes(0)
    palette = Image.fromarray(number).convert("P")
    palette.putpalette(CAMVID_PALETTE.tobytes())
    labels = [encoded(number), encoded(palette), encoded(Image.fromarray(number.astype(np.uint16)))]
    table = write_table(tmp_path / "b.parquet", image=[encoded(photograph(0))] * 3, label=labels)
    first, *others = all_records(PairSet(PairsConfig("segmentation"), [table], S))
    assert all(same(first, other) for other in others), "an index is an index, whatever stores it"


@pytest.mark.parametrize(
    ("label", "error", "message"),
    [
        (encoded(classes(0, (12, 36))), PairError, "one record have 36 x 24 and 36 x 12 pixels; scale them alike"),
        (encoded(classes(0) + 1), PairError, r"row 1, label: class numbers must lie in 0 to 11, found 1 to 12"),
        (encoded(CAMVID_PALETTE[classes(0)]), ImageError, r"label: expected one class number per pixel .* mode RGB"),
        (encoded(classes(0))[:60], ImageError, "row 1, label: damaged image"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit_are_named(tmp_path: Path, label: bytes, error: type, message: str) -> None:
    table = write_table(tmp_path / "a.parquet", image=[encoded(photograph(0))], label=[label])
    with pytest.raises(error, match=message):
        PairSet(PairsConfig("segmentation"), [table], S).pair(0)


def test_inputs_that_cannot_serve_the_task_are_refused(tmp_path: Path) -> None:
    table = write_table(tmp_path / "a.parquet", image=[encoded(photograph(0))], masks=[[b""]])
    (tmp_path / "empty").mkdir()
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and something else")
    cases: list[tuple[str, Path, type, str]] = [
        ("segmentation", table, PairsError, r"a\.parquet: no column 'label'; it has image, masks"),
        ("files", table, PairsError, "no column 'input'"),
        ("edges", tmp_path / "empty", PairsError, r"empty: holds neither images nor \.parquet files"),
        ("files", tmp_path / "empty", PairsError, r"empty: holds neither input/ and target/ nor \.parquet"),
        ("edges", tmp_path / "nothing", FileNotFoundError, "nothing: no such file or folder of images"),
        ("edges", tmp_path / "b.parquet", PairsError, r"b\.parquet: not a Parquet file that can be read"),
    ]
    for task, path, error, message in cases:
        with pytest.raises(error, match=message):
            PairSet(PairsConfig(task), [path], S)
    with pytest.raises(PairsError, match="column 'masks' holds lists; one image per row is needed there"):
        PairSet(PairsConfig("edges", input_column="masks"), [table], S).pair(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": (3, 3)}, r"pairs\.rows: expected 0 <= first < stop, got \[3, 3\]"),
        ({"copies": -1}, r"pairs\.copies: expected at least 0, got -1"),
        ({"crop_share": 0.0}, r"pairs\.crop_share: expected a share above 0, at most 1, got 0\.0"),
        ({"flip": 2.0}, r"pairs\.flip: expected a probability"),
        ({"target_column": "label"}, r"pairs\.target_column: task edges makes its targets itself"),
    ],
)
def test_configs_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(PairsError, match=message):
        PairsConfig("edges", **options)


def test_configs_survive_json() -> None:
    config = PairsConfig("deraining", rows=(1, 5), corruption=Corruption(noise=(1.0, 2.0)))
    again = PairsConfig.from_json(json.loads(json.dumps(asdict(config))))
    assert json.dumps(asdict(again)) == json.dumps(asdict(config))
    with pytest.raises(ValueError, match=r"corruption\.noise: expected 0 <= smallest <= largest, got 9, 1"):
        Corruption(noise=(9, 1))


def test_real_pairs(real_data: Path) -> None:
    camvid, bsds = (real_data / "image_pairs" / name / "train.parquet" for name in ("camvid", "bsds500"))
    segmentation = PairSet(PairsConfig("segmentation", views="six_crop"), [camvid], 64)
    assert len(segmentation) == 2202, "367 pictures of six crops"
    colours = {tuple(colour) for index in range(0, 2202, 200) for colour in segmentation.pair(index)[1].reshape(-1, 3)}
    assert colours <= {tuple(colour) for colour in CAMVID_PALETTE} and len(colours) > 6
    rain = PairSet(PairsConfig("deraining", rows=(40, 60), copies=50), [bsds], 64)
    assert len(rain) == 20 * 51
    image, clean = rain.pair(0)
    error = np.mean((image.astype(float) - clean) ** 2)
    assert 10 < 10 * np.log10(255**2 / error) < 30, "PSNR of a rainy input"
