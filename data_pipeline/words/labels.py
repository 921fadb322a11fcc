"""What a label becomes before a model learns it, and a record of everything that it loses on the way.

    "Café-9"  normalised  ->  white space out  ->  too long?  ->  case of the charset, others out  ->  empty?
              "Cafe-9"                             dropped        "cafe9" (36 characters)            dropped

The order is that of the published code (docs/methods/ocr.md: labels): length is checked before characters are removed.
White space around a label is no part of it. Within it, it becomes one space where the charset holds the space;
elsewhere it is removed as in the published code, but counted like every character that a label loses.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from data_pipeline.errors import LabelError
from tokenizer.characters import adapt_to_charset

Normalisation = Literal["ascii", "nfkc", "none"]
EXAMPLES = 5


@dataclass(frozen=True)
class CleanLabel:
    """A label after the rules."""

    text: str
    """What remains; empty for a dropped label."""
    problem: Literal["", "too long", "unsupported", "empty"] = ""
    """Why it is dropped; empty if it is kept."""
    removed: str = ""
    """Characters outside the charset that were removed."""


@dataclass(frozen=True)
class LabelRules:
    """The rules for one charset."""

    charset: str
    """The characters that remain."""
    max_length: int = 25
    """Longer labels are dropped."""
    normalise: Normalisation = "ascii"
    """ascii: NFKD, then everything that is not ASCII goes (é becomes e; Chinese vanishes). nfkc: compatibility forms
    become plain ones, nothing vanishes. none: as it is."""

    @classmethod
    def for_charset(cls, charset: str, max_length: int = 25) -> LabelRules:
        """The published rules for a charset of ASCII characters; for any other, NFKC."""
        return cls(charset, max_length, "ascii" if charset.isascii() else "nfkc")

    def clean(self, label: str) -> CleanLabel:
        """Applies the rules."""
        words = label.split()
        if not words:
            return CleanLabel("", "empty")
        space = " " if " " in self.charset else ""
        # Some signs become a space and an accent: such a space was never in the label.
        text = space.join(self._normalised(word).replace(" ", "") for word in words)
        if len(text) > self.max_length:
            return CleanLabel("", "too long")
        adapted, removed = adapt_to_charset(text, self.charset)
        adapted = space.join(adapted.split())
        lost = "" if space else "".join(filter(str.isspace, label.strip()))
        return CleanLabel(adapted, "" if adapted else "unsupported", lost + removed)

    def _normalised(self, text: str) -> str:
        if self.normalise == "ascii":
            return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
        return unicodedata.normalize("NFKC", text) if self.normalise == "nfkc" else text


@dataclass
class LabelReport:
    """What the rules did to a set of labels."""

    labels: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """By problem."""
    altered: int = 0
    """Kept, but without some of their characters."""
    removed: Counter[str] = field(default_factory=Counter)
    """Characters that were removed from kept labels and from dropped ones."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """A few by kind: sample, label and what became of it."""

    def add(self, sample: str, label: str, clean: CleanLabel) -> None:
        """Counts one label."""
        self.labels += 1
        self.removed.update(clean.removed)
        kind = clean.problem or ("altered" if clean.removed else "")
        if clean.problem:
            self.dropped[clean.problem] += 1
        elif clean.removed:
            self.altered += 1
        if kind and len(shown := self.examples.setdefault(kind, [])) < EXAMPLES:
            shown.append(f"{sample}: {label!r}" + (f" -> {clean.text!r}" if clean.text else ""))

    def refuse_above(self, max_dropped: float, max_altered: float, where: str) -> None:
        """Raises `LabelError`, with examples, when a larger share of the labels is dropped or altered."""
        for name, count, share in (
            ("dropped", self.dropped.total(), max_dropped),
            ("altered", self.altered, max_altered),
        ):
            if count > share * self.labels:
                kinds = [kind for kind in self.examples if (kind == "altered") == (name == "altered")]
                shown = "; ".join(example for kind in kinds for example in self.examples[kind][:2])
                raise LabelError(
                    f"{where}: {count:,} of {self.labels:,} labels would be {name}, more than {share:.1%} ({shown});"
                    f" take a charset that holds {self._characters()}, or raise max_{name}"
                )

    def to_text(self) -> str:
        """One line, and one per kind of loss."""
        dropped = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.dropped.items())) or "none"
        lines = [f"{self.labels:,} labels; dropped: {dropped}; altered: {self.altered:,}"]
        if self.removed:
            lines.append(f"  removed characters: {self._characters()}")
        lines += [f"  {kind}: {'; '.join(found)}" for kind, found in sorted(self.examples.items())]
        return "\n".join(lines)

    def _characters(self) -> str:
        shown = " ".join(f"{character!r} ({count:,})" for character, count in self.removed.most_common(8))
        return shown or "them"


def clean_labels(
    name: Callable[[int], str], labels: Sequence[str], rules: LabelRules
) -> tuple[list[int], list[str], LabelReport]:
    """Numbers of the kept labels, the kept labels after the rules, and the report; `name` says where a number lies."""
    report, numbers, kept = LabelReport(), [], []
    for number, label in enumerate(labels):
        clean = rules.clean(label)
        report.add(name(number) if clean.problem or clean.removed else "", label, clean)
        if not clean.problem:
            numbers.append(number)
            kept.append(clean.text)
    return numbers, kept, report
