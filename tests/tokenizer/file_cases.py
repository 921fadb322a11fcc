"""Small corpora of the kinds that people have, written into a folder; what a reader has to find in each is `TEXTS`."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

TEXTS = [f"text {number} of the corpus, 文 and more of it" for number in range(120)]
RECORDS = [{"id": number, "text": text, "lang": "en"} for number, text in enumerate(TEXTS)]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()
MARK = b"\xef\xbb\xbf"


def zst(content: bytes, window_log: int = 20) -> bytes:
    """Two frames behind a skippable one, as parallel compressors write them."""
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=window_log)
    frames = []
    for part in (content[: len(content) // 2], content[len(content) // 2 :]):
        stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()  # does not know the size
        frames.append(stream.compress(part) + stream.flush())
    return b"\x50\x2a\x4d\x18\x04\x00\x00\x00\x00\x00\x00\x00" + b"".join(frames)


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda content: gzip.compress(content[:500]) + gzip.compress(content[500:]),  # two members
    ".bz2": lambda content: bz2.compress(content[:500]) + bz2.compress(content[500:]),
    ".xz": lzma.compress,
    ".zst": zst,
}


def _folder(write: Callable[[Path], None]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        corpus = folder / "corpus"
        corpus.mkdir()
        write(corpus)
        return corpus

    return make


def _file(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def _hub_link(corpus: Path) -> None:
    (corpus / "blobs").mkdir()
    (corpus / "blobs" / "0f0f").write_bytes(gzip.compress(LINES))
    (corpus / "snapshots" / "abc").mkdir(parents=True)
    (corpus / "snapshots" / "abc" / "en.jsonl.gz").symlink_to("../../blobs/0f0f")


def _linked_folder(corpus: Path) -> None:
    elsewhere = corpus.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "more.jsonl").write_bytes(LINES)
    (corpus / "more").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(corpus)
    (corpus / "again.jsonl").symlink_to(elsewhere / "more.jsonl")  # the same file by another name


def _companions(corpus: Path) -> None:
    (corpus / "en.jsonl").write_bytes(LINES)
    noise = b"\x00\x05\x16\x07" + bytes(range(256)) * 300
    for name in (
        "._en.jsonl",
        ".en.jsonl.swp",
        "en.jsonl~",
        "x.jsonl.part",
        "Thumbs.db",
        "README.md",
        "en.jsonl.sha256",
    ):
        (corpus / name).write_bytes(noise)
    for inner in (".cache/huggingface", ".ipynb_checkpoints", "__MACOSX", ".git"):
        (corpus / inner).mkdir(parents=True)
        (corpus / inner / "en.jsonl").write_bytes(noise)
    (corpus / "zero.jsonl").touch()


def _odd_name(corpus: Path) -> None:
    (corpus / "caf\udce9 \n.jsonl").write_bytes(LINES)


def _nested(corpus: Path) -> None:
    rows = [{"meta": {"text": text, "n": number}, "text2": "x"} for number, text in enumerate(TEXTS)]
    pq.write_table(pa.Table.from_pylist(rows), corpus / "a.PARQUET", row_group_size=50)


def _with_nan() -> bytes:
    scores = (float("nan"), float("inf"), 10**400, 0.5)
    rows = [{**record, "score": scores[number % 4]} for number, record in enumerate(RECORDS)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


CASES: dict[str, Callable[[Path], Path]] = {
    "a link of a hub's cache": _folder(_hub_link),
    "a linked folder, a loop": _folder(_linked_folder),
    "companions": _folder(_companions),
    "a name that is not UTF-8": _folder(_odd_name),
    "upper case": _folder(lambda corpus: (corpus / "UPPER.JSONL").write_bytes(LINES) and None),
    "json: an array": _file("a.json", json.dumps(RECORDS).encode()),
    "json: printed": _file("a.json", json.dumps(RECORDS, indent=2, ensure_ascii=False).encode()),
    "json: lines": _file("a.JSON", LINES),
    "json: objects over lines": _file("a.json", "\n".join(json.dumps(r, indent=1) for r in RECORDS).encode()),
    "a mark": _file("a.jsonl", MARK + LINES),
    "marks of two files": _file(
        "a.jsonl", MARK + LINES[: LINES.index(b"\n") + 1] + MARK + LINES[LINES.index(b"\n") + 1 :]
    ),
    "CRLF": _file("a.jsonl", LINES.replace(b"\n", b"\r\n")),
    "NaN beside the text": _file("a.jsonl", _with_nan()),
    "another field broken": _file("a.jsonl", LINES.replace(b'"lang": "en"', b'"by": "caf\xe9"')),
    "a long window": _file("a.jsonl.zst", zst(LINES, 28)),
    **{f"packed{kind}": _file(f"a.jsonl{kind.upper()}", pack(LINES)) for kind, pack in PACKED.items()},
    **{f"json{kind}": _file(f"a.json{kind}", pack(json.dumps(RECORDS).encode())) for kind, pack in PACKED.items()},
}
"""What can be read: every document is there, none twice."""

REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a link to nowhere": (
        _folder(
            lambda corpus: (
                (corpus / "a.jsonl").write_bytes(LINES),
                (corpus / "gone.jsonl").symlink_to("/no/gone.jsonl"),
            )[1]
        ),
        r"gone\.jsonl: a link to /no/gone\.jsonl, which does not exist",
    ),
    "a link to itself": (
        _folder(lambda corpus: (corpus / "round.jsonl").symlink_to("round.jsonl")),
        r"round\.jsonl: a link to round\.jsonl, which does not exist",
    ),
    "mostly another kind": (
        _folder(
            lambda corpus: ((corpus / "a.jsonl").write_bytes(LINES), (corpus / "b.csv").write_bytes(LINES))[0] and None
        ),
        r"corpus: 1 of 2 files are not used \(b\.csv; .* more than 10%: convert them",
    ),
    "UTF-16": (_file("a.jsonl", LINES.decode().encode("utf-16")), r"a\.jsonl: is UTF-16, not UTF-8; convert it"),
    "UTF-16, no mark": (_file("a.txt", b"Hello to all of you".decode().encode("utf-16-le")), r"a\.txt: is UTF-16"),
    "packed UTF-16": (_file("a.jsonl.gz", gzip.compress(LINES.decode().encode("utf-16"))), "is UTF-16, not UTF-8"),
    "not gzip": (_file("a.jsonl.gz", LINES), r"its name promises \.gz data, but it holds something else"),
    "gzip unsaid": (_file("a.jsonl", gzip.compress(LINES)), r"holds \.gz data; rename it to end in \.gz"),
    "a page": (_file("a.jsonl.zst", b"<html>404"), r"its name promises \.zst data"),
    "Git LFS": (_file("a.txt", b"version https://git-lfs.github.com/spec/v1\noid 1\n"), "pointer of Git LFS"),
    "a cut array": (
        _file("a.json", json.dumps(RECORDS).encode()[:-40]),
        r"a\.json: damaged or truncated after item 119",
    ),
    "latin-1": (_file("a.jsonl", LINES.replace("文".encode(), b"\xe9")), r"(120 of 120 documents|120 of 120).*"),
    **{
        f"cut{kind}": (_file(f"a.jsonl{kind}", pack(LINES)[:-9]), "damaged or truncated")
        for kind, pack in PACKED.items()
        if kind
    },
}
"""What cannot, and what is said."""

FOLDERS = frozenset(
    {name for name, make in CASES.items() if "_folder" in make.__qualname__}
    | {name for name, (make, _) in REFUSED.items() if "_folder" in make.__qualname__}
)
"""Cases that are folders; the others are files."""
