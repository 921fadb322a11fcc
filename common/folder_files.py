"""Which files of a folder are data: one rule for every command that is given a folder of text or of images.

    en.jsonl  UPPER.JSONL  more -> ../elsewhere      taken: told by the suffix of the name, in any case; of a link, by
                                                     the link's name; linked files and folders are followed
    ._en.jsonl  .cache/  Thumbs.db  en.jsonl~        never data: hidden names, what other programs leave beside files
    README.md  LICENSE                               never data: they speak about it
    zh.jsonl.lz4                                     found and not used: shown, and refused above `MAX_UNUSED`
    gone.jsonl -> /nonexistent                       an error that names it, as is a folder that may not be read

A folder is entered once and a file taken once, however many links lead there, so a loop of links ends.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import InputError

COMPANIONS = re.compile(
    r"\..*|__MACOSX|__pycache__|Thumbs\.db|ehthumbs\.db|desktop\.ini|.*~|#.*#|\$RECYCLE\.BIN|lost\+found"
    r"|.*\.(sw[op]|bak|tmp|temp|part|partial|crdownload|download|incomplete|lock|aria2)",
    re.IGNORECASE,
)
"""Names of what other programs leave beside files; not `._*` alone, every hidden name."""
DESCRIPTIONS = re.compile(
    r"(README|LICEN[CS]E|COPYING|NOTICE|CHANGELOG|CITATION|SOURCES?|(SHA(1|256|512)|MD5)SUMS?)(\.(md|txt|rst|html?|cff))?"
    r"|.*\.(sha1|sha256|sha512|md5|asc|sig)|dataset_infos?\.json|state\.json|dataset_dict\.json|corpus\.json",
    re.IGNORECASE,
)
"""Names of what speaks about data and is none."""
UNPRINTABLE = re.compile("[\0-\x1f\x7f\ud800-\udfff]")
MAX_UNUSED = 0.1
"""Largest share of a folder's bytes that may lie in files which are not used."""
EXAMPLES = 3


class UnusedFilesError(InputError, ValueError):
    """Much of a folder would be left out."""


@dataclass
class FolderFiles:
    """What a folder holds."""

    folder: Path
    """The folder, as it was named."""
    files: list[Path] = field(default_factory=list)
    """Those to use, sorted."""
    unused: list[Path] = field(default_factory=list)
    """Those of another kind."""
    folders: list[Path] = field(default_factory=list)
    """Folders directly below it that are not hidden; listed where they are not entered."""

    def use(self, suffixes: Sequence[str]) -> list[Path]:
        """The files, after the others were shown on stderr.

        Raises:
            UnusedFilesError: the others hold more than `MAX_UNUSED` of the bytes.
        """
        behind_links = {path.resolve() for path in self.files if path.is_symlink()}
        left = [path for path in self.unused if not behind_links or path.resolve() not in behind_links]
        if not left or not self.files:
            return self.files
        size, of_all = _bytes_of(left), _bytes_of([*self.files, *left])
        shown = ", ".join(readable(path.relative_to(self.folder)) for path in left[:EXAMPLES])
        more = f" and {len(left) - EXAMPLES:,} more" if len(left) > EXAMPLES else ""
        count = len(self.files) + len(left)
        message = (
            f"{readable(self.folder)}: {len(left):,} of {count:,} files are not used ({shown}{more}; {size:,} of"
            f" {of_all:,} bytes)"
        )
        if size > MAX_UNUSED * of_all:
            raise UnusedFilesError(
                f"{message}, more than {MAX_UNUSED:.0%}: convert them to one of {', '.join(suffixes)}, move them away,"
                " or name the files to use one by one"
            )
        tell(message)
        return self.files


def find_files(folder: Path, suffixes: Sequence[str], deep: bool = True) -> FolderFiles:
    """Looks through a folder.

    Args:
        folder: where to look.
        suffixes: of the names that are taken, in lower case.
        deep: enter the folders in it.

    Raises:
        FileNotFoundError: a link in it leads nowhere; names it.
        OSError: a folder in it cannot be read.
    """
    found = FolderFiles(folder)
    entered: set[str] = set()
    links = False
    pending = [folder]
    while pending:
        place = pending.pop()
        real = os.path.realpath(place)
        if real in entered:
            continue
        entered.add(real)
        for path in _entries(place):
            links = links or path.is_symlink()
            if path.is_dir():
                (pending if deep else found.folders).append(path)
            elif path.name.lower().endswith(tuple(suffixes)) and path.is_file():
                found.files.append(path)
            else:
                found.unused.append(path)
    found.files.sort()
    if links:  # without one, no file is there twice; a real path costs several look-ups
        found.files = sorted({os.path.realpath(path): path for path in reversed(found.files)}.values())
    found.unused.sort()
    found.folders.sort()
    return found


def check_link(path: Path) -> None:
    """Raises FileNotFoundError for a link that leads nowhere, or in a circle; names it and its target."""
    if path.is_symlink() and not os.path.exists(path):  # noqa: PTH110 (Path.exists raises for a circle, before 3.13)
        raise FileNotFoundError(
            f"{readable(path)}: a link to {readable(path.readlink())}, which does not exist; mend or remove it"
        )


def tell(message: str) -> None:
    """Prints a line on stderr; of the ranks of a run, the first one does."""
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr)


def is_data_name(name: str) -> bool:
    """Whether a file or folder of this name may be data."""
    return not COMPANIONS.fullmatch(name) and not DESCRIPTIONS.fullmatch(name)


def readable(path: Path | str) -> str:
    """A path as text that can be printed on one line and stored: control characters, and bytes of a name that are not
    UTF-8, become `\\xNN`."""
    return UNPRINTABLE.sub(_escaped, str(path))


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    byte = code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code  # how Python keeps such bytes
    return f"\\x{byte:02x}" if byte < 256 else f"\\u{byte:04x}"


def _entries(folder: Path) -> Iterator[Path]:
    """What may be data directly below a folder, sorted."""
    for path in sorted(folder.iterdir()):
        if is_data_name(path.name):
            check_link(path)
            yield path


def _bytes_of(paths: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.is_file())
