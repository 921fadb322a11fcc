"""prepare on images: the same shards with any number of workers, resumed after a kill, nothing lost in silence."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from common.token_shards import META_FILE, Meta
from data_pipeline.__main__ import main
from data_pipeline.errors import PairsError, PrepareError
from data_pipeline.pairs.pairs import PairsConfig, PairSet
from data_pipeline.shards.prepare import prepare
from data_pipeline.shards.prepare_config import PrepareConfig
from data_pipeline.shards.sentence_source import SentenceSource
from data_pipeline.shards.token_source import TokenSource
from data_pipeline.shards.workspace import Workspace
from tokenizer.visual.load import load_visual_tokenizer
from tokenizer.visual.patches import PatchTokenizer

from .visual_cases import classes, encoded, photograph, write_photographs, write_table

S, PATCH, CODES = 16, 4, 40
N = (S // PATCH) ** 2


@pytest.fixture(scope="session")
def visual_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of forty random patches."""
    patches = np.random.default_rng(0).integers(0, 256, (CODES, 3 * PATCH * PATCH), dtype=np.uint8)
    directory = tmp_path_factory.mktemp("visual_tokenizer")
    PatchTokenizer(patches, S).save(directory)
    return directory


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "photographs.parquet", 12)


def run(source: Path, tokenizer: Path, output: Path, task: str = "edges", **options: object) -> Meta:
    pairs = PairsConfig(task, **options.pop("pairs", {}))
    return prepare(PrepareConfig([str(source)], str(output), str(tokenizer), pairs=pairs, **({"workers": 1} | options)))


def contents(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}


def stored(output: Path) -> np.ndarray:
    """Ids of all records, in order: int64 [records, ids]."""
    meta = Meta.load(output)
    ids = np.concatenate([np.fromfile(output / shard.file, meta.dtype) for shard in meta.shards]).astype(np.int64)
    return ids.reshape(meta.documents, -1)


@pytest.mark.parametrize(("task", "images"), [("edges", 2), ("segmentation", 2), ("single", 1), ("sequence", 3)])
def test_shards_hold_the_ids_of_the_pairs(
    photographs: Path, visual_tokenizer: Path, tmp_path: Path, task: str, images: int
) -> None:
    output = tmp_path / "out"
    options = {"frames": 3, "copies": 1, "views": "six_crop"}
    meta = run(photographs, visual_tokenizer, output, task, part_bytes=20_000, pairs=options)
    pairs = PairSet(PairsConfig(task, **options), [photographs], S)
    tokenizer = load_visual_tokenizer(output / "tokenizer")
    assert len(meta.shards) > 2 and meta.documents == len(pairs)
    assert meta.bytes == len(pairs) * images * S * S * 3 and meta.tokens == len(pairs) * images * N
    assert (meta.bos_token_id, meta.eos_token_id, meta.tokens_per_image) == (None, None, N)
    assert meta.tokenizer_hash == tokenizer.hash and meta.vocab_size == CODES
    found = stored(output)
    for index in range(len(pairs)):
        assert found[index].tolist() == tokenizer.encode(np.stack(pairs.pair(index))).flatten().tolist()
    assert PairsConfig.from_json(meta.inputs["pairs"]).task == task
    assert not (output / ".prepare").exists() and not list(output.glob("*.partial"))
    sentences = SentenceSource(output, 6, verify=True, tokenizer_hash=tokenizer.hash, vocab_size=CODES)
    expected = found[sentences.records_of(0)].flatten()
    assert sentences.sample(0)["input_ids"].tolist() == expected[:-1].tolist()
    assert TokenSource(output, images * N).sample(1)["input_ids"].tolist() == found[1].tolist()


def test_the_number_of_workers_changes_no_byte(photographs: Path, visual_tokenizer: Path, tmp_path: Path) -> None:
    options = {"part_bytes": 20_000, "pairs": {"copies": 3}}
    run(photographs, visual_tokenizer, tmp_path / "one", "deraining", **options)
    run(photographs, visual_tokenizer, tmp_path / "two", "deraining", workers=2, **options)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(list((tmp_path / "one").glob("*.ds"))) > 2


def test_killed_runs_continue_without_redoing_parts(photographs: Path, visual_tokenizer: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = ["--input", str(photographs), "--output", str(output), "--tokenizer", str(visual_tokenizer)]
    arguments += ["--pairs.task=edges", "--pairs.copies=99", "--part_bytes=100000", "--workers=1"]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "data_pipeline", "prepare", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    workspace = Workspace.of(output)
    while not workspace.completion_marker(0).exists() and process.poll() is None:
        time.sleep(0.01)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert not psutil.wait_procs(children, timeout=20)[1]
    assert not (output / META_FILE).exists()
    parts = len(json.loads(workspace.plan.read_text())["parts"])
    complete = [rank for rank in range(parts) if workspace.is_complete(rank)]
    assert 0 < len(complete) < parts
    before = {rank: (output / f"{rank:05d}.ds").stat().st_mtime_ns for rank in complete}
    options = {"part_bytes": 100_000, "pairs": {"copies": 99}}
    run(photographs, visual_tokenizer, output, **options)
    assert {rank: (output / f"{rank:05d}.ds").stat().st_mtime_ns for rank in complete} == before
    run(photographs, visual_tokenizer, tmp_path / "uninterrupted", **options)
    assert contents(output) == contents(tmp_path / "uninterrupted")


def test_the_same_call_does_nothing_and_another_is_refused(
    photographs: Path, visual_tokenizer: Path, tmp_path: Path, capsys
) -> None:
    output = tmp_path / "out"
    meta = run(photographs, visual_tokenizer, output, pairs={"rows": (2, 8)})
    assert run(photographs, visual_tokenizer, output, pairs={"rows": (2, 8)}, workers=2) == meta
    assert "already prepared from the same input and tokenizer; nothing to do" in capsys.readouterr().err
    before = contents(output)
    for options, difference in (
        ({"pairs": {"rows": (2, 9)}}, r"pairs\.rows\[1\]: 8 -> 9"),
        ({"pairs": {"rows": (2, 8)}, "task": "denoising"}, r"pairs\.task: 'edges' -> 'denoising'"),
    ):
        with pytest.raises(PrepareError, match=rf"another input or tokenizer \({difference}\)"):
            run(photographs, visual_tokenizer, output, **options)
    write_photographs(photographs, 12, first=5)
    with pytest.raises(PrepareError, match=r"files\[0\]\.hash"):
        run(photographs, visual_tokenizer, output, pairs={"rows": (2, 8)})
    assert contents(output) == before


def test_bad_rows_are_counted_shown_and_refused_above_the_threshold(
    visual_tokenizer: Path, tmp_path: Path, capsys
) -> None:
    image, label = [[encoded(make(n)) for n in range(10)] for make in (photograph, classes)]
    image[3] = image[3][:500]
    label[5] = encoded(classes(5, (12, 36)))
    label[6] = encoded(classes(6) + 1)
    image[9] = b""
    table = write_table(tmp_path / "a.parquet", image=image, label=label)
    arguments = ["prepare", "--input", str(table), "--output", str(tmp_path / "out"), "--workers=1"]
    arguments += ["--tokenizer", str(visual_tokenizer), "--pairs.task=segmentation", "--pairs.copies=2"]
    assert main(arguments) == 1
    refused = capsys.readouterr().err.splitlines()[-1]
    assert "12 of 30 documents (40.00%) cannot be used, more than reject_threshold 1.00%" in refused
    assert main([*arguments, "--reject_threshold=0.5"]) == 0
    printed = capsys.readouterr().out
    assert "18 records" in printed and "bytes of pixels" in printed
    assert "rejected, unreadable image: 6 (a.parquet:4 'a.parquet: row 4, image: damaged image" in printed
    assert "rejected, image and target that do not fit: 6 (a.parquet:6 " in printed
    meta = Meta.load(tmp_path / "out")
    assert [example.line for example in meta.rejected["unreadable image"].examples] == [4, 10]
    pairs = PairSet(PairsConfig("segmentation", copies=2), [table], S)
    kept = [index for item in (0, 1, 2, 4, 7, 8) for index in pairs.records_of(item)]
    tokenizer = load_visual_tokenizer(visual_tokenizer)
    assert stored(tmp_path / "out").tolist() == [
        tokenizer.encode(np.stack(pairs.pair(index))).flatten().tolist() for index in kept
    ]


def test_photographs_without_masks_are_skipped_and_counted(visual_tokenizer: Path, tmp_path: Path) -> None:
    masks = [[encoded((classes(n) == 0).astype(np.uint8))] if n % 2 else [] for n in range(4)]
    table = write_table(tmp_path / "a.parquet", image=[encoded(photograph(n)) for n in range(4)], masks=masks)
    meta = run(
        table,
        visual_tokenizer,
        tmp_path / "out",
        "segmentation",
        reject_threshold=0.5,
        pairs={"target_column": "masks"},
    )
    assert meta.documents == 2 and meta.rejected["image without masks"].count == 2


def test_pairs_and_tokenizer_must_fit(
    photographs: Path, visual_tokenizer: Path, tokenizer_directory: Path, corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(PrepareError, match=r"a visual tokenizer encodes images; say with --pairs\.task"):
        prepare(PrepareConfig([str(corpus)], str(tmp_path / "out"), str(visual_tokenizer)))
    with pytest.raises(PrepareError, match=r"pairs of images need a visual tokenizer .* this is none"):
        run(photographs, tokenizer_directory, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="nothing: no such directory of a visual tokenizer"):
        run(photographs, tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(PairsError, match="no column 'input'"):
        run(photographs, visual_tokenizer, tmp_path / "out", "files")
    with pytest.raises(PrepareError, match="given twice in `input`"):
        prepare(
            PrepareConfig(
                [str(photographs)] * 2, str(tmp_path / "out"), str(visual_tokenizer), pairs=PairsConfig("edges")
            )
        )
    assert not (tmp_path / "out").exists()


def test_nested_options_come_from_yaml_and_the_command_line(
    photographs: Path, visual_tokenizer: Path, tmp_path: Path, capsys
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        f"input: [{photographs}]\noutput: {tmp_path / 'out'}\ntokenizer: {visual_tokenizer}\nworkers: 1\n"
        "pairs:\n  task: denoising\n  rows: [1, 4]\n  corruption:\n    noise: [3, 4]\n"
    )
    assert main(["prepare", "--config", str(config), "--pairs.copies=2", "--pairs.corruption.rain_angle=5"]) == 0
    described = Meta.load(tmp_path / "out").inputs["pairs"]
    assert (described["task"], described["rows"], described["copies"]) == ("denoising", [1, 4], 2)
    assert described["corruption"]["noise"] == [3, 4] and described["corruption"]["rain_angle"] == 5
    for wrong, message in (
        (["--pairs.rows=[4,4]"], "pairs.rows: expected 0 <= first < stop"),
        (["--pairs.task=smell"], "smell"),
        (["--pairs.colour=red"], "colour"),
        (["--pairs.corruption.noise=[9,1]"], "corruption.noise: expected 0 <= smallest <= largest"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["prepare", "--config", str(config), *wrong])
        assert end.value.code == 2 and message in capsys.readouterr().err


def test_the_sheet_shows_the_first_records(photographs: Path, tmp_path: Path, capsys) -> None:
    from PIL import Image

    sheet = tmp_path / "sheets" / "edges.png"
    arguments = ["pairs", "--input", str(photographs), "--output", str(sheet), "--pairs.task=edges"]
    assert main([*arguments, "--image_size=16", "--records=5", "--columns=2"]) == 0
    assert "5 of 12 records of 2 images, made of 12 rows; the first is photographs.parquet: row 1" in (
        capsys.readouterr().out
    )
    pixels = np.asarray(Image.open(sheet))
    assert pixels.shape == (3 * 20, 2 * 36, 3)
    pairs = PairSet(PairsConfig("edges"), [photographs], 16)
    assert np.array_equal(pixels[20:36, 36:68], np.concatenate(pairs.pair(3), axis=1))
