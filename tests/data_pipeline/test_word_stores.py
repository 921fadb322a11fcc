"""Stores of word images: every layout gives the same words; what is damaged is named."""

import pickle
from multiprocessing import get_context

import lmdb
import numpy as np
import pytest

from data_pipeline.errors import LabelError, SourceError
from data_pipeline.loader import Loader, collate_tokens
from data_pipeline.order import Order
from data_pipeline.words.augment import OPERATIONS, augment_word
from data_pipeline.words.source import WordSource
from data_pipeline.words.stores import LmdbWriter, content_hash, open_words
from tests.data_pipeline.word_cases import LABELS, picture, write_folder, write_lmdb, write_parquet
from tokenizer.characters import CHARSETS, CharacterTokenizer
from tokenizer.inputs.images import ImageError

TOKENIZER = CharacterTokenizer(CHARSETS["94"])


@pytest.fixture
def stores(tmp_path):
    write_lmdb(tmp_path / "lmdb")
    write_parquet(tmp_path / "words.parquet")
    write_folder(tmp_path / "folder")
    write_folder(tmp_path / "csv", name="labels.csv")
    (tmp_path / "tree" / "inner").mkdir(parents=True)
    write_lmdb(tmp_path / "tree" / "inner" / "a", LABELS[:2])
    with LmdbWriter(tmp_path / "tree" / "z") as writer:
        for number in (2, 3, 4):
            writer.add(picture(number), LABELS[number])
    return [tmp_path / name for name in ("lmdb", "words.parquet", "folder", "csv", "tree")]


def test_workers_read_an_lmdb_that_the_training_process_has_open(tmp_path):
    source = WordSource(write_lmdb(tmp_path / "words"), TOKENIZER, (16, 32), max_altered=1.0)
    first, order = source.sample(0), Order([len(source)], 4, seed=0)

    def read(workers: int) -> list:
        settings = {"rank": 0, "world_size": 1, "micro_batch_size": 4, "start_step": 0, "stop_step": 3}
        return [batch for [batch] in Loader(source, order, collate_tokens, **settings, num_workers=workers)]

    for alone, shared in zip(read(0), read(2), strict=True):
        assert all(np.array_equal(alone[name], shared[name]) for name in alone)
    assert np.array_equal(source.sample(0)["image"], first["image"])


def test_every_layout_gives_the_same_words(stores):
    for path in stores:
        store = pickle.loads(pickle.dumps(open_words(path)))  # worker processes get it that way
        assert store.column("text") == LABELS
        assert [store.image(number) for number in range(5)] == [picture(number) for number in range(5)]
        assert content_hash(store) == content_hash(open_words(stores[0]))


def test_a_forked_worker_reads_what_its_parent_has_open(stores):
    store = open_words(stores[0])
    with get_context("fork").Pool(1) as pool:  # how the loader's workers start
        assert pool.map(store.image, [0, 4]) == [picture(0), picture(4)]
    assert store.image(1) == picture(1)


def test_the_layout_is_that_of_the_toolkits(stores):
    with lmdb.open(str(stores[0]), readonly=True, lock=False) as environment, environment.begin() as transaction:
        assert transaction.get(b"num-samples") == b"5"
        assert transaction.get(b"label-000000003") == "Café-9".encode()
        assert transaction.get(b"image-000000001") == picture(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"num-samples": None}, "key 'num-samples' is missing"),
        ({b"num-samples": b"many"}, "key 'num-samples' is b'many'"),
        ({b"num-samples": b"6"}, "key 'image-000000006' is missing, of 6"),
        ({b"image-000000002": None}, "key 'image-000000002' is missing"),
        ({b"label-000000004": None}, "key 'label-000000004' is missing"),
        ({b"label-000000001": b"\xff"}, "'label-000000001' is not UTF-8"),
    ],
)
def test_a_damaged_lmdb_is_refused(tmp_path, change, message):
    write_lmdb(tmp_path / "x")
    with lmdb.open(str(tmp_path / "x")) as environment, environment.begin(write=True) as transaction:
        for key, value in change.items():
            if value is None:
                transaction.delete(key)
            else:
                transaction.put(key, value)
    with pytest.raises(SourceError, match=message):
        open_words(tmp_path / "x")


def test_what_is_no_store_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.txt").write_text("x")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1junk")
    (tmp_path / "mdb").mkdir()
    (tmp_path / "mdb" / "data.mdb").write_bytes(b"junk" * 5000)
    for name, error, message in (
        ("empty", SourceError, "holds neither"),
        ("x.txt", SourceError, "word images come as"),
        ("bad.parquet", ImageError, "not a Parquet file"),
        ("mdb", SourceError, "not an LMDB"),
    ):
        with pytest.raises(error, match=message):
            open_words(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        open_words(tmp_path / "no")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../secret.png\tx", "line 2: ../secret.png lies outside"),
        ("/etc/hostname\tx", "line 2: /etc/hostname lies outside"),
        ("none.png\tx", "line 2: none.png is not there"),
        ("0.png", "line 2: expected file and label"),
        ("0.png\ta\tb", "line 2: expected file and label"),
    ],
)
def test_label_files_stay_in_their_folder(tmp_path, line, message):
    (tmp_path / "secret.png").write_bytes(picture(0))
    write_folder(tmp_path / "x", LABELS[:1])
    with (tmp_path / "x" / "labels.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(SourceError, match=message):
        open_words(tmp_path / "x")


def test_the_writer_leaves_all_or_nothing(tmp_path):
    with pytest.raises(RuntimeError), LmdbWriter(tmp_path / "x") as writer:
        writer.add(b"1", "a")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    write_lmdb(tmp_path / "x")
    with pytest.raises(SourceError, match="is there already"):
        LmdbWriter(tmp_path / "x")


def test_samples(stores):
    source = WordSource(stores[0], TOKENIZER, (32, 128), max_length=8)
    sample = source.sample(2)
    assert sample["image"].shape == (3, 32, 128) and sample["image"].dtype == np.uint8
    assert sample["ids"].shape == (10,) and TOKENIZER.decode(sample["ids"]) == "Cafe-9"
    assert (len(source), source.words, source.documents(2)[0].document) == (5, 5, 2)
    with pytest.raises(SourceError, match="sample 5 asked for"):
        source.sample(5)
    other = WordSource(stores[0], CharacterTokenizer(CHARSETS["36"]), (32, 128), max_length=8, max_altered=0.5)
    assert other.identity() != source.identity()


def test_losses_above_the_limit_are_refused(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", ["good", "中国", "x" * 26])
    with pytest.raises(LabelError, match=r"2 of 3 labels would be dropped.*row 1"):
        WordSource(path, TOKENIZER, (32, 128))
    source = WordSource(path, TOKENIZER, (32, 128), max_dropped=0.7)
    assert len(source) == 1 and dict(source.report.dropped) == {"unsupported": 1, "too long": 1}
    with pytest.raises(SourceError, match="holds no word images"):
        WordSource(write_parquet(tmp_path / "y.parquet", ["中"]), TOKENIZER, (32, 128), max_dropped=1.0)


def test_an_unreadable_image_is_named(tmp_path):
    from PIL import Image

    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    contents = [picture(0)[:60], (tmp_path / "dot.png").read_bytes()]
    source = WordSource(write_parquet(tmp_path / "x.parquet", ["a", "b"], contents), TOKENIZER, (32, 128))
    with pytest.raises(ImageError, match=r"x\.parquet: row 0: damaged image"):
        source.sample(0)
    with pytest.raises(ImageError, match=r"x\.parquet: row 1: 1 x 1 pixels show no word"):
        source.sample(1)


def test_copies_are_different_and_repeatable(stores):
    source = WordSource(stores[0], TOKENIZER, (32, 128), copies=20)
    assert len(source) == 100
    first = [source.sample(index)["image"] for index in range(0, 100, 5)]
    again = [pickle.loads(pickle.dumps(source)).sample(index)["image"] for index in range(0, 100, 5)]
    assert all(np.array_equal(left, right) for left, right in zip(first, again, strict=True))
    assert len({image.tobytes() for image in first}) > 15
    assert all(TOKENIZER.decode(source.sample(index)["ids"]) == "Hello" for index in range(0, 100, 5))


def test_augmentation_is_that_of_the_specification():
    from PIL import Image

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 90, 3), dtype=np.uint8))
    assert len(OPERATIONS) == 16
    for name, operation in OPERATIONS.items():
        changed = operation(image, 0.5, np.random.default_rng(1))
        assert changed.mode == "RGB" and (changed.size != image.size) == (name == "Rotate")
        if name != "AutoContrast":  # full range already
            assert changed.size != image.size or changed.tobytes() != image.tobytes(), name
    same = sum(augment_word(image, np.random.default_rng(seed)).tobytes() == image.tobytes() for seed in range(400))
    assert 0.08 < same / 400 < 0.22  # three coins, all tails: 1/8, and a little for operations that change nothing
