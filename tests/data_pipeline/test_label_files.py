"""Label files as people write them: every form gives the same labels, and what does not fit is named by its line."""

from pathlib import Path

import pytest

from data_pipeline.errors import LabelError, SourceError
from data_pipeline.words.source import WordSource
from data_pipeline.words.stores import open_words
from tests.data_pipeline.word_cases import picture
from tokenizer.characters import CharacterTokenizer, read_charset

LABELS = ["river stone", 'say "hi"', r"C:\dir", "a, b", "plain"]
NAMES = ["in/0.png", "1.png", "2.png", "3.png", "4.png"]


def folder(path: Path, names: list[str] = NAMES) -> Path:
    for number, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(picture(number))
    return path


def table(rows: list[tuple[str, str]], separator: str, quote: str = "", escape: str = '"', end: str = "\n") -> bytes:
    def cell(text: str) -> str:
        return quote + text.replace(quote, escape + quote) + quote if quote else text

    return "".join(f"{cell(name)}{separator}{cell(label)}{end}" for name, label in rows).encode()


ROWS = list(zip(NAMES, LABELS, strict=True))
FORMS = {
    "tabs": ("labels.txt", table(ROWS, "\t")),
    "tabs, a mark, CRLF": ("Labels.TXT", b"\xef\xbb\xbf" + table(ROWS, "\t", end="\r\n")),
    "tabs, a heading": ("labels.tsv", b"filename\tlabel\n" + table(ROWS, "\t")),
    "quoted": ("labels.csv", table(ROWS, ",", '"')),
    "quoted, a heading": ("labels.csv", b"file,text\n" + table(ROWS, ",", '"')),
    "semicolons": ("labels.csv", table(ROWS, ";", '"')),
    "backslashes before quotes": ("labels.csv", table([(n, t.replace("\\", "\\\\")) for n, t in ROWS], ",", '"', "\\")),
    "ICDAR": ("gt.txt", table([(n, t.replace("\\", "\\\\")) for n, t in ROWS], ", ", '"', "\\")),
    "spaces": ("labels.txt", table(ROWS, " ")),
    "Windows names": ("labels.txt", table([(name.replace("/", "\\"), label) for name, label in ROWS], "\t")),
    "other columns": (
        "labels.csv",
        b"width,label,image_path\n" + "".join(f'9,"{t.replace(chr(34), chr(34) * 2)}",{n}\n' for n, t in ROWS).encode(),
    ),
    "more columns behind": (
        "labels.tsv",
        b"filename\tlabel\tlang\n" + "".join(f"{name}\t{label}\ten\n" for name, label in ROWS).encode(),
    ),
    "a heading in another language": ("labels.csv", b"Datei,Wort\n" + table(ROWS, ",", '"')),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_labels(form: str, tmp_path: Path) -> None:
    name, content = FORMS[form]
    (folder(tmp_path) / name).write_bytes(content)
    store = open_words(tmp_path)
    assert store.column("text") == LABELS
    assert [store.image(number) for number in range(len(LABELS))] == [picture(number) for number in range(len(LABELS))]


def test_links_are_followed_and_the_rest_is_shown(tmp_path: Path, capsys) -> None:
    folder(tmp_path / "blobs", ["0f", "1f", "2f"])
    store = tmp_path / "snapshot"
    store.mkdir()
    for number in range(3):
        (store / f"{number}.png").symlink_to(tmp_path / "blobs" / f"{number}f")
    (store / "._0.png").write_bytes(b"companion")
    (store / "labels.txt").write_text("0.png\tzero\n1.png\tone\n")
    assert open_words(store).column("text") == ["zero", "one"]
    assert "labels.txt: names 2 images; 1 more are not used (2.png)" in capsys.readouterr().err
    (store / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (store / "labels.txt").write_text("gone.png\tx\n")
    with pytest.raises(SourceError, match=r"labels\.txt, line 1: .*gone\.png: a link to .*nowhere\.png"):
        open_words(store)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.csv", b'1.png,"open\n2.png,b\n', r"labels\.csv, line 1: quotes that do not fit"),
        ("labels.csv", b"1.png,a,b\n", r"line 1: expected file and label, found 3 fields"),
        ("labels.txt", b"1.png\ta\n2.png\t\xff\n", r"line 2: not UTF-8 \(the byte 0xFF"),
        ("labels.txt", b"1.png\ta\n..\\secret.png\tx\n", "line 2: .*lies outside"),
        ("labels.txt", "1.png\ta\n".encode("utf-16"), "is UTF-16, not UTF-8"),
        ("labels.csv", b"file,label\nnone.png,x\n", r"line 2: none\.png is not there"),
    ],
)
def test_what_does_not_fit_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (folder(tmp_path) / name).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        open_words(tmp_path)


def test_the_space_is_kept_or_counted(tmp_path: Path) -> None:
    (folder(tmp_path) / "labels.txt").write_bytes(b"1.png\triver  stone\n2.png\t plain \r\n3.png\tnew\xc2\xa0york\n")
    (tmp_path / "charset.txt").write_bytes(b"abcdefghijklmnopqrstuvwxyz \r\n")
    characters = read_charset(str(tmp_path / "charset.txt"))
    assert characters.endswith("z ")
    kept = WordSource(tmp_path, CharacterTokenizer(characters), (32, 128))
    assert kept.labels == ["river stone", "plain", "new york"] and kept.report.altered == 0
    ids = kept.sample(0)["ids"]
    assert kept.tokenizer.decode(ids) == "river stone"
    with pytest.raises(
        LabelError, match=r"2 of 3 labels would be altered.*'river  stone' -> 'riverstone'.*holds ' ' \(2\)"
    ):
        WordSource(tmp_path, CharacterTokenizer(read_charset("36")), (32, 128))
