"""Words as characters: the ids, and nothing lost on the way."""

import random

import pytest

from tokenizer.characters import CHARSETS, CharacterTokenizer, CharsetError, read_charset


def test_the_ids_are_the_published_ones():
    small, full = (CharacterTokenizer(CHARSETS[name]) for name in ("36", "94"))
    assert small.encode("0z").tolist() == [37, 1, 36, 0]
    assert (full.eos, full.bos, full.pad, len(full)) == (0, 95, 96, 97)
    assert small.encode("a", 6).tolist() == [37, 11, 0, 38, 38, 38]


@pytest.mark.parametrize("name", CHARSETS)
def test_ten_thousand_words_survive(name):
    tokenizer, rng = CharacterTokenizer(CHARSETS[name]), random.Random(name)
    for _ in range(10_000):
        text = "".join(rng.choices(tokenizer.characters, k=rng.randint(0, 25)))
        assert tokenizer.decode(tokenizer.encode(text, 27)) == text


def test_nothing_after_the_end_counts():
    tokenizer = CharacterTokenizer("abc")
    assert tokenizer.decode([1, 2, 0, 3, 0]) == "ab"
    assert tokenizer.decode([4, 1, 5, 2]) == "ab"


def test_what_does_not_fit_is_named():
    tokenizer = CharacterTokenizer("ab")
    with pytest.raises(CharsetError, match=r"'abé': 'é' \(U\+00E9\) is not in the charset"):
        tokenizer.encode("abé")
    with pytest.raises(CharsetError, match="3 characters do not fit into 2"):
        tokenizer.encode("aba", 4)


def test_charsets_from_files(tmp_path):
    path = tmp_path / "charset.txt"
    for content, expected in (
        ("中国人\nabc\n", "中国人abc"),
        ("a\r\nb\r\n", "ab"),
        ("\ufeffab\n", "ab"),
        ("ab \n", "ab "),
        ("a\n \nb", "a b"),
    ):
        path.write_bytes(content.encode())
        assert read_charset(str(path)) == expected
    for content, message in (
        (b"a b c", "' '.*there twice"),
        (b"a\tb", r"U\+0009.*only the plain space"),
        ("a\u3000".encode(), r"U\+3000.*only the plain space"),
        ("ab".encode("utf-16"), "UTF-16"),
        (b"", "no characters"),
        (b"aba", "'a'.*there twice"),
        (b"a\xff", "not UTF-8 at byte 1"),
    ):
        path.write_bytes(content)
        with pytest.raises(CharsetError, match=message):
            read_charset(str(path))
    with pytest.raises(CharsetError, match=r"charset '37': neither one of 36, 62, 94 nor a text file"):
        read_charset("37")
