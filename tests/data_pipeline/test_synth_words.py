"""Drawn words: a pure function of seed and number, whatever the worker; what cannot be drawn is said."""

import gzip
import pickle
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from data_pipeline.__main__ import main
from data_pipeline.errors import SourceError
from data_pipeline.words.render import Look
from data_pipeline.words.stores import open_words
from data_pipeline.words.synthetic import SynthCommand, SynthConfig, SynthWords, WordPainter, synthesise
from tokenizer.characters import CHARSETS, CharacterTokenizer

WORDS = ["river", "King", "it's", "naïve", "a" * 30]


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "words.txt.gz"
    path.write_bytes(gzip.compress("\n".join(WORDS).encode()))
    return str(path)


def test_sample_i_depends_on_seed_and_i_alone(words, tmp_path):
    tokenizer = CharacterTokenizer(CHARSETS["94"])
    short, long = (SynthWords(SynthConfig([words], size), tokenizer, (32, 128)) for size in (5, 50))
    moved = pickle.loads(pickle.dumps(long))
    for index in (4, 0, 2):
        one, two, three = (source.sample(index) for source in (short, long, moved))
        for name in ("image", "ids"):
            assert np.array_equal(one[name], two[name]) and np.array_equal(one[name], three[name])
    other = SynthWords(SynthConfig([words], 5, seed=1), tokenizer, (32, 128))
    assert any(not np.array_equal(other.sample(i)["image"], short.sample(i)["image"]) for i in range(5))
    assert (
        short.identity() != other.identity()
        and short.identity() == SynthWords(SynthConfig([words], 5), tokenizer, (32, 128)).identity()
    )
    with pytest.raises(SourceError, match="sample 5 asked for"):
        short.sample(5)


def test_what_is_drawn(words):
    painter = WordPainter(SynthConfig([words], 10, digits=0.3), CHARSETS["36"])
    assert painter.words == ["its", "king", "naive", "river"]
    assert painter.report.dropped["too long"] == 1 and painter.report.removed["'"] == 1
    texts = [painter.draw(index)[0] for index in range(200)]
    numbers = [text for text in texts if text.isdigit()]
    assert 30 < len(numbers) < 90 and set(texts) - set(numbers) == set(painter.words)
    capitals = WordPainter(SynthConfig([words], 10, digits=0.0, capitals=0.5), CHARSETS["62"])
    drawn = {capitals.draw(index)[0] for index in range(100)}
    assert {"RIVER", "River", "KING"} <= drawn and "river" not in drawn


def test_letters_stand_out(words):
    painter = WordPainter(SynthConfig([words], 10), CHARSETS["94"])
    for index in range(40):
        _, image = painter.draw(index)
        values = np.asarray(image.convert("L")).astype(float)
        assert image.mode == "RGB" and values.max() - values.min() > 40 and 16 <= image.height <= 120


@pytest.mark.parametrize("light", [0.0, 1.0])
def test_letters_are_darker_or_lighter_as_asked(words, light):
    plain = Look(light=light, photograph=0, shadow=0, noise=0, blur=0, jpeg=0)
    painter = WordPainter(SynthConfig([words], 10, look=plain), CHARSETS["94"])
    lighter = 0
    for index in range(40):
        values = np.asarray(painter.draw(index)[1].convert("L")).astype(float)
        middle = np.median(values)
        lighter += values.max() - middle > middle - values.min()
    assert abs(lighter / 40 - light) < 0.2  # a few backgrounds leave no room on the side that is asked for


def test_chinese_words_need_a_font_that_draws_them(tmp_path):
    path = tmp_path / "zh.txt"
    path.write_text("中国\nabc\n", encoding="utf-8")
    charset = "中国abc"
    painter = WordPainter(SynthConfig([str(path)], 3, digits=0.0), charset)
    drawn = {painter.draw(index)[0].lower() for index in range(30)}
    assert drawn == set(painter.words) and "abc" in drawn
    assert ("中国" in drawn) == bool(painter.fonts.drawing("中国"))


def test_the_command_writes_the_same_bytes_with_any_workers(words, tmp_path, capsys):
    photograph = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)).save(photograph)
    config = SynthCommand([words], 300, output=str(tmp_path / "one"), photographs=[str(photograph)], workers=1)
    assert "300 images of 4 words in" in synthesise(config) and "altered: 0" in synthesise(
        replace(config, output=str(tmp_path / "two"), workers=2)
    )
    one, two = open_words(tmp_path / "one"), open_words(tmp_path / "two")
    assert len(one) == 300 and one.column("text") == two.column("text")
    assert all(one.image(index) == two.image(index) for index in range(300))
    assert main(["synth-words", "--words", words, "--size", "9", "--output", str(tmp_path / "one")]) == 1
    assert (
        capsys.readouterr()
        .err.strip()
        .splitlines()[-1]
        .endswith("is there already; choose another folder or remove it")
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--words", "no.txt"], "no.txt: no such word list"),
        (["--charset", "37"], "charset '37'"),
        (["--fonts", "empty"], "no fonts found in empty"),
        (["--photographs", "no.jpg"], "no.jpg: no such file or folder of images"),
        (["--shortest", "20"], "no word that a font here can draw"),
    ],
)
def test_wrong_arguments_end_in_one_line(words, tmp_path, capsys, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    arguments = ["synth-words", "--words", words, "--size", "3", "--output", "out", *change]
    assert main(arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("data_pipeline synth-words: ") and message in error
    assert not (tmp_path / "out").exists()


def test_impossible_sizes_are_refused_by_the_parser(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["synth-words", "--words", words, "--size", "0", "--output", "out"])
    assert "size: must be at least 1" in capsys.readouterr().err
