"""A smaller tokenizer out of a larger one, for a model that cannot afford the embedding of a large vocabulary.

    count     how often the corpus uses each piece              counting.py
    select    the pieces to keep                                selection.py, derivation.py
    cut       a tokenizer of those pieces, same order, scores   sliceable*.py
    prove     every kept piece is produced by some text, nothing is lost that was not lost before
    write     the tokenizer, vocabulary_map.json, report.json and plots, in one step

Source: PanGu-pi Pro (docs/methods/tiny_lm.md: compact tokenizer). New here: `closure`, `auto`, the proof.
Compare models of different tokenizers by bits per byte, never by their loss per token.

Cost: encoding the corpus once (5 MB/s a core), and about 20 seconds for a vocabulary of 100,000.
"""

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.atomic_files import appearing_folder
from common.errors import InputError
from common.processes import available_cores
from common.token_shards import is_shard_directory
from common.vocabulary_map import MAP_FILE, VocabularyMap
from tokenizer.compression.compress_config import CompressConfig
from tokenizer.compression.compress_plots import plot_fit, plot_kept
from tokenizer.compression.compress_report import CompressReport, LostPiece, PieceCount
from tokenizer.compression.counting import CountingError, Counts, count_shards, count_texts, shard_texts
from tokenizer.compression.selection import Selector
from tokenizer.compression.sliceable import SliceableTokenizer, open_sliceable
from tokenizer.fingerprint import tokenizer_hash
from tokenizer.inputs.broken_text import TextCheck
from tokenizer.inputs.corpus import corpus_texts
from tokenizer.inputs.sampling import sample_texts
from tokenizer.inspection import (
    TextFit,
    embedding_share,
    kinds_of_tokens,
    labelled_samples,
    measure_fit,
    script_of,
)
from tokenizer.load import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DROPPED_SHOWN = 50
CURVE_POINTS = 400
SCRIPTS_SAMPLED = 4
"""The sample of a corpus is this many times as large as that of one language, before it is sorted by script."""


class CompressError(InputError, ValueError):
    """A compression that is refused: an output that holds something else, or a result that would lose text."""


def compress(config: CompressConfig) -> CompressReport:
    """Counts, selects, cuts, proves and writes.

    Raises:
        FileNotFoundError, TokenizerLoadError: the tokenizer cannot be opened or cut.
        InvalidDocumentError, ValueError: a document or file of the corpus cannot be used; names file and line.
        ShardError: shards that are truncated or damaged.
        CountingError: no text, or shards of another tokenizer.
        SelectionError: no vocabulary of this size; with auto, none that the rule accepts.
        CompressError: OUTPUT holds something else, or the result would lose text that the donor keeps.
    """
    output = Path(config.output)
    _check_output(output)
    loaded = load_tokenizer(config.tokenizer)
    donor = open_sliceable(config.tokenizer, loaded)
    donor_hash = tokenizer_hash(loaded)
    count_folder = Path(config.counts or f"{output}.counts")
    counts = count_corpus(config, donor, donor_hash, count_folder)
    selector = Selector(donor, counts.per_id, config.closure)
    size, why = (config.vocab_size, None) if isinstance(config.vocab_size, int) else selector.automatic(config.shape)
    kept = selector.select(size)
    published = kept if not config.closure else Selector(donor, counts.per_id, closed=False).select(size)
    cut = donor.cut(kept)
    samples = _samples(config, donor)
    with appearing_folder(output) as folder:
        cut.write(folder)
        small = load_tokenizer(folder)
        before, after = _fits(loaded, samples), _fits(small, samples)
        _refuse_loss(before, after, config.closure)
        unreachable, lost = _lost_pieces(donor, cut, kept, counts)
        report = CompressReport(
            tokenizer=config.tokenizer,
            format=donor.format,
            output=config.output,
            donor_hash=donor_hash,
            hash=tokenizer_hash(small),
            donor_vocab_size=len(donor.names),
            vocab_size=size,
            why=why,
            closure=config.closure,
            required=selector.smallest,
            ancestors=len(set(kept) - set(published)),
            documents=counts.documents,
            bytes=counts.bytes,
            tokens=int(counts.per_id.sum()),
            coverage=selector.coverage(kept),
            published_coverage=selector.coverage(published),
            top_coverage=float(np.sort(counts.per_id)[::-1][:size].sum() / counts.per_id.sum()),
            curve=coverage_curve(counts.per_id),
            unreachable_in_donor=unreachable,
            lost=lost,
            dropped=_dropped(donor, kept, counts),
            dropped_seen=int((np.delete(counts.per_id, kept) > 0).sum()),
            before=before,
            after=after,
            disagreements=_disagreements(cut, samples),
            shape=asdict(config.shape),
            shares={
                str(width): _shares(config, width, (len(donor.names), size))
                for width in sorted({config.width, *config.widths})
            },
        )
        VocabularyMap(donor_hash, report.hash, len(donor.names), kept).save(folder)
        report.save(folder / "report.json")
        plot_kept(report, folder / "coverage.png")
        plot_fit(report, folder / "fit.png")
    if config.counts is None:
        shutil.rmtree(count_folder, ignore_errors=True)
    return report


def count_corpus(config: CompressConfig, donor: SliceableTokenizer, donor_hash: str, folder: Path) -> Counts:
    """Counts text files and shard directories; the counts of parts go to `folder`."""
    shards, texts = _split_corpus(config.corpus)
    total = Counts.none(len(donor.names))
    for directory in shards:
        total += count_shards(directory, donor_hash, len(donor.names))
    if texts:
        read = corpus_texts(texts, config.text_field, TextCheck(config.broken_text), progress="count")
        total += count_texts(read, donor, folder, config.workers or available_cores())
    if not total.per_id.sum():
        raise CountingError(f"{', '.join(config.corpus)}: no text to count")
    return total


def coverage_curve(per_id: np.ndarray) -> list[tuple[int, float]]:
    """Points (k, share of the tokens that the k most frequent pieces make up), k evenly spaced in its logarithm."""
    shares = np.cumsum(np.sort(per_id)[::-1]) / per_id.sum()
    ranks = np.unique(np.geomspace(1, len(shares), CURVE_POINTS).round().astype(int))
    return [(int(rank), round(float(shares[rank - 1]), 6)) for rank in ranks]


def _split_corpus(entries: Sequence[str]) -> tuple[list[Path], list[str]]:
    shards = [Path(entry) for entry in entries if is_shard_directory(Path(entry))]
    return shards, [entry for entry in entries if not is_shard_directory(Path(entry))]


def _samples(config: CompressConfig, donor: SliceableTokenizer) -> dict[str, list[str]]:
    """Texts by label as the user named them, or a sample of the corpus by script."""
    if config.sample:
        return labelled_samples(config.sample, config.text_field, config.sample_bytes, config.seed, config.broken_text)
    shards, texts = _split_corpus(config.corpus)
    budget = SCRIPTS_SAMPLED * config.sample_bytes

    def everything() -> Iterator[str]:
        for directory in shards:
            yield from shard_texts(directory, donor.backend, budget)
        yield from corpus_texts(texts, config.text_field, TextCheck(config.broken_text))

    samples: dict[str, list[str]] = {}
    sizes: Counter[str] = Counter()
    for text in sample_texts(everything(), budget, config.seed).texts:
        label = _script_of_text(text)
        if sizes[label] < config.sample_bytes:
            samples.setdefault(label, []).append(text)
            sizes[label] += len(text.encode())
    return dict(sorted(samples.items()))


def _script_of_text(text: str) -> str:
    """The script of most of its letters."""
    scripts = Counter(script_of(character) for character in text[:4000])
    letters = {script: count for script, count in scripts.items() if script not in ("space", "digits", "punctuation")}
    return max(letters, key=lambda script: (letters[script], script), default="no letters")


def _fits(tokenizer: "PreTrainedTokenizerBase", samples: dict[str, list[str]]) -> dict[str, TextFit]:
    kinds = kinds_of_tokens(tokenizer)
    return {label: measure_fit(tokenizer, texts, kinds) for label, texts in samples.items()}


def _refuse_loss(before: dict[str, TextFit], after: dict[str, TextFit], closure: bool) -> None:
    for label, fit in after.items():
        lost = fit.round_trip_failures - before[label].round_trip_failures
        if closure and lost > 0:
            raise CompressError(
                f"{lost} documents of the sample {label} no longer survive encoding and decoding; the tokenizer was not"
                " written (please report it: this should not happen)"
            )


def _lost_pieces(
    donor: SliceableTokenizer, cut: SliceableTokenizer, kept: Sequence[int], counts: Counts
) -> tuple[list[str], list[LostPiece]]:
    """Kept pieces of several characters that nothing is encoded to: those that the donor never made, and the others."""
    ordinary = set(donor.ordinary)
    pieces = {new: old for new, old in enumerate(kept) if old in ordinary and len(donor.names[old]) > 1}
    now = {pieces[new] for new in cut.unreachable(list(pieces))}
    never = donor.unreachable(sorted(now))
    lost = sorted(now - never, key=lambda id_: (-counts.per_id[id_], id_))
    return (
        [donor.names[id_] for id_ in sorted(never)],
        [LostPiece(donor.names[id_], id_, int(counts.per_id[id_])) for id_ in lost],
    )


def _dropped(donor: SliceableTokenizer, kept: Sequence[int], counts: Counts) -> list[PieceCount]:
    gone = sorted(set(donor.ids) - set(kept), key=lambda id_: (-counts.per_id[id_], id_))
    return [PieceCount(donor.names[id_], int(counts.per_id[id_])) for id_ in gone[:DROPPED_SHOWN] if counts.per_id[id_]]


def _disagreements(cut: SliceableTokenizer, samples: dict[str, list[str]]) -> int:
    """Texts of the sample that the fastest encoder (SentencePiece, if that is the format) and tokenizer.json spell
    differently."""
    encode = cut.encoder()
    return sum(
        ids != encoding.ids
        for texts in samples.values()
        for ids, encoding in zip(
            encode(texts), cut.backend.encode_batch_fast(texts, add_special_tokens=False), strict=True
        )
    )


def _shares(config: CompressConfig, width: int, sizes: tuple[int, int]) -> dict[str, Any]:
    intermediate = config.intermediate_size if width == config.width else None
    which = "share_tied" if config.tied else "share_untied"
    before, after = (embedding_share(size, width, config.layers, intermediate)[which] for size in sizes)
    return {"before": before, "after": after}


def _check_output(output: Path) -> None:
    ours = (output / MAP_FILE).is_file()
    if output.exists() and not ours and (not output.is_dir() or any(output.iterdir())):
        raise CompressError(f"{output}: holds something else than a compressed tokenizer; choose another --output")
