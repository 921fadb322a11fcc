"""`remap`: token shards of a tokenizer -> shards of a smaller one that was cut out of it, without the raw text.

The result is what `prepare` would write from the text with the smaller tokenizer, byte for byte, meta.json included;
remap_ids.py says why, and some documents of every shard are encoded again to prove it. It refuses where that cannot be:
shards with unknown tokens (their text is lost), or ids that the donor does not give for the text they decode to.

Each shard is one task. An interrupted call continues with the shards that are missing; meta.json comes last.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from common.atomic_files import write_json
from common.processes import WorkerContext, available_cores, end_with_parent
from common.token_shards import (
    INDEX_DTYPE,
    META_FILE,
    Meta,
    ShardMeta,
    sha256_of,
    token_bytes_for,
)
from common.vocabulary_map import VocabularyMap
from data_pipeline.errors import RemapError
from data_pipeline.identity import explain_mismatch
from data_pipeline.shards.remap_ids import Mode, Remapper, choose_mode
from data_pipeline.shards.text import copy_tokenizer
from data_pipeline.shards.workspace import Workspace
from data_pipeline.shards.write_shard import ShardWriter, full_disk_named
from tokenizer.document_tokens import document_tokens

WORKSPACE = ".remap"
BATCH_TOKENS = 2**18


@dataclass(frozen=True)
class RemapConfig:
    """Turns token shards into shards of a compressed tokenizer, equal to preparing the text again."""

    input: str
    """Directory of shards, made by `python -m data_pipeline prepare` with the larger tokenizer."""
    tokenizer: str
    """Output of `python -m tokenizer compress` (it holds vocabulary_map.json), made from that tokenizer."""
    output: str
    """Directory for the new shards and meta.json."""
    check_documents: int | Literal["all"] = 100
    """Documents of every shard, spread evenly, that are decoded and encoded with both tokenizers to prove that the
    result is exact; all: every one."""
    workers: int = 0
    """Processes at a time; 0: one per CPU core. It does not change the result."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise RemapError(f"workers: expected 0 or more, found {self.workers}")
        if isinstance(self.check_documents, int) and self.check_documents < 0:
            raise RemapError(f"check_documents: expected 0 or more, or all, found {self.check_documents}")


@dataclass(frozen=True)
class RemapReport:
    """What was done."""

    output: str
    mode: str
    """How ids were translated, see remap_ids.py."""
    before: Meta
    after: Meta

    def to_text(self) -> str:
        """Two lines for the terminal."""
        return (
            f"{self.output}: {self.after.documents:,} documents, {self.before.tokens:,} -> {self.after.tokens:,} tokens"
            f" ({self.before.bytes_per_token:.2f} -> {self.after.bytes_per_token:.2f} bytes per token)"
            f" in {len(self.after.shards)} shards\n  mode {self.mode}; vocabulary {self.before.vocab_size:,} ->"
            f" {self.after.vocab_size:,}, {8 * self.before.token_bytes} -> {8 * self.after.token_bytes} bits a token"
        )


def remap(config: RemapConfig) -> RemapReport:
    """Writes the shards; does nothing if they are complete, and continues if an earlier call was interrupted.

    Raises:
        FileNotFoundError: no such directory.
        ShardError: the input is unfinished, truncated or altered.
        VocabularyMapError: the tokenizer has no map, or a broken one.
        RemapError: shards and map are of different tokenizers, the result would not be exact, or the output holds
            something else.
    """
    from tokenizer.compression.sliceable import open_sliceable
    from tokenizer.fingerprint import tokenizer_hash
    from tokenizer.load import load_tokenizer

    source, output = Path(config.input), Path(config.output)
    before = Meta.load(source)
    before.check_files(source)
    if before.bos_token_id is None or before.eos_token_id is None:
        raise RemapError(f"{source}: these shards hold images; only text can be brought to another tokenizer")
    mapping = VocabularyMap.load(config.tokenizer)
    if mapping.donor_hash != before.tokenizer_hash:
        raise RemapError(
            f"{source}: these shards were made by tokenizer {before.tokenizer_hash[:12]}, but {config.tokenizer} was"
            f" cut out of {mapping.donor_hash[:12]}; compress {source / 'tokenizer'}, or prepare the text"
        )
    smaller = load_tokenizer(config.tokenizer)
    loaded = load_tokenizer(source / "tokenizer")
    for what, given, expected in (
        (config.tokenizer, tokenizer_hash(smaller), mapping.hash),
        (source / "tokenizer", tokenizer_hash(loaded), before.tokenizer_hash),
    ):
        if given != expected:
            raise RemapError(f"{what}: altered: expected tokenizer {expected[:12]}, found {given[:12]}")
    try:
        first, last = document_tokens(smaller, config.tokenizer)
    except ValueError as error:
        raise RemapError(str(error)) from None
    facts = {"hash": mapping.hash, "vocab_size": len(smaller), "bos_token_id": first, "eos_token_id": last}
    ends = [before.bos_token_id, before.eos_token_id]
    if mapping.new_ids[ends].tolist() != [facts["bos_token_id"], facts["eos_token_id"]]:
        raise RemapError(f"{config.tokenizer}: its bos and eos are not those of the shards; prepare the text instead")
    donor = open_sliceable(source / "tokenizer", loaded)
    mode = choose_mode(donor, mapping)
    inputs = {**before.inputs, "tokenizer": facts}
    plan = {"input": asdict(before), "check_documents": config.check_documents}
    workspace, complete = _open(output, plan, inputs, before)
    if complete is not None:
        return RemapReport(config.output, mode, before, complete)
    with full_disk_named(output):
        workspace.make()
        copy_tokenizer(config.tokenizer, workspace.tokenizer)
        write_json(workspace.plan, plan)
        task = partial(
            _remap_shard, source, before, mapping, mode, donor.ordinary, facts, config.check_documents, workspace
        )
        _run(task, before, workspace, config.workers or available_cores())
        return RemapReport(config.output, mode, before, _finish(workspace, before, facts, inputs))


def _open(output: Path, plan: dict[str, Any], inputs: dict[str, Any], before: Meta) -> tuple[Workspace, Meta | None]:
    """The working folder, new or of an interrupted call; and the description of shards that are complete."""
    workspace = Workspace(output / WORKSPACE)
    if (output / META_FILE).is_file():
        found = Meta.load(output)
        difference = explain_mismatch(found.inputs, inputs)
        if difference or found.documents != before.documents:
            raise RemapError(f"{output}: holds shards of something else ({difference}); choose another output")
        found.check_files(output)
        shutil.rmtree(workspace.directory, ignore_errors=True)
        print(f"{output}: already remapped; nothing to do", file=sys.stderr)
        return workspace, found
    if workspace.plan.is_file():
        difference = explain_mismatch(json.loads(workspace.plan.read_text(encoding="utf-8")), plan)
        if difference:
            raise RemapError(
                f"{output}: holds unfinished shards of another input ({'; '.join(difference.splitlines())});"
                " choose another output, or remove it"
            )
        done = sum(workspace.shard_report(_rank(shard)).is_file() for shard in before.shards)
        print(
            f"{output}: continues an earlier call; {done} of {len(before.shards)} shards are complete", file=sys.stderr
        )
    elif any(output.glob("*.ds")):
        raise RemapError(f"{output}: holds .ds files that were not written by remap; choose another output")
    return workspace, None


def _run(task: partial[None], before: Meta, workspace: Workspace, workers: int) -> None:
    """Runs the task of every shard without a report; the first error ends the others and is raised."""
    missing = [shard for shard in before.shards if not workspace.shard_report(_rank(shard)).is_file()]
    started = before.tokens - sum(shard.tokens for shard in missing)
    with tqdm(total=before.tokens, initial=started, unit="token", unit_scale=True, desc="remap") as bar:
        if workers == 1:
            for shard in missing:
                task(shard)
                bar.update(shard.tokens)
            return
        with ProcessPoolExecutor(workers, WorkerContext(), end_with_parent) as pool:
            try:
                futures = {pool.submit(task, shard): shard for shard in missing}
                for future in as_completed(futures):
                    future.result()
                    bar.update(futures[future].tokens)
            except BrokenProcessPool as error:
                raise RemapError(
                    "a worker process was killed, probably for want of memory; use fewer workers, and give the same"
                    " command again: finished shards are kept"
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)


def _finish(workspace: Workspace, before: Meta, facts: dict[str, Any], inputs: dict[str, Any]) -> Meta:
    reports = [workspace.shard_report(_rank(shard)).read_text(encoding="utf-8") for shard in before.shards]
    meta = Meta(
        tokenizer_hash=facts["hash"],
        vocab_size=facts["vocab_size"],
        token_bytes=token_bytes_for(facts["vocab_size"]),
        bos_token_id=facts["bos_token_id"],
        eos_token_id=facts["eos_token_id"],
        shards=[ShardMeta(**json.loads(report)) for report in reports],
        rejected=before.rejected,
        inputs=inputs,
    )
    meta.check_files(workspace.output)
    meta.save(workspace.output)
    for leftover in workspace.output.glob("*.partial"):
        leftover.unlink()  # a killed task's; none is running any more
    shutil.rmtree(workspace.directory)
    return meta


def _remap_shard(
    source: Path,
    before: Meta,
    mapping: VocabularyMap,
    mode: Mode,
    ordinary: list[int],
    facts: dict[str, Any],
    check_documents: int | Literal["all"],
    workspace: Workspace,
    shard: ShardMeta,
) -> None:
    """Writes one shard and its report.

    Raises:
        RemapError: the shard was altered, or cannot be translated exactly.
    """
    for name, expected in ((shard.file, shard.sha256), (f"{shard.file}.index", shard.index_sha256)):
        if sha256_of(source / name) != expected:
            raise RemapError(f"{source / name}: altered since it was prepared; copy it again or prepare again")
    remapper = Remapper(source / "tokenizer", workspace.tokenizer, mapping, mode, ordinary)
    unknown = remapper.unknown_id
    share = shard.documents if check_documents == "all" else min(check_documents, shard.documents)
    checked = set(np.linspace(0, shard.documents - 1, share, dtype=int).tolist())
    dtype = np.dtype(f"<u{token_bytes_for(facts['vocab_size'])}")
    with ShardWriter(workspace.output, _rank(shard), dtype) as writer:
        number = 0
        for documents in _batches(source, before, shard):
            for place, document in enumerate(documents):
                if unknown is not None and (document == unknown).any():
                    raise RemapError(
                        f"{source / shard.file}: document {number + place} holds the unknown token, so its text is"
                        " lost; prepare the text with the new tokenizer"
                    )
            translated = remapper.translate(documents)
            chosen = [place for place in range(len(documents)) if number + place in checked]
            _check(source / shard.file, number, remapper, documents, translated, chosen)
            writer.write([[facts["bos_token_id"], *ids, facts["eos_token_id"]] for ids in translated], 0)
            number += len(documents)
        writer.write([], shard.bytes)
        write_json(workspace.shard_report(_rank(shard)), asdict(writer.publish()))


def _check(
    file: Path,
    first: int,
    remapper: Remapper,
    documents: list[np.ndarray],
    translated: list[list[int]],
    chosen: list[int],
) -> None:
    """Decodes the chosen documents and encodes them with both tokenizers."""
    picked = [documents[place] for place in chosen]
    again = remapper.encode_old(remapper.texts(picked))
    fresh = remapper.by_text(picked)
    for place, old, new in zip(chosen, again, fresh, strict=True):
        if old != documents[place].tolist():
            raise RemapError(
                f"{file}: document {first + place} is not what the shards' tokenizer makes of the text it decodes to,"
                " so that text may not be the original; prepare the text with the new tokenizer"
            )
        if new != translated[place]:
            raise RemapError(
                f"{file}: document {first + place} would not be what the new tokenizer makes of its text; prepare the"
                " text with the new tokenizer (and please report this: it should not happen)"
            )


def _batches(source: Path, before: Meta, shard: ShardMeta) -> Iterator[list[np.ndarray]]:
    """The documents of a shard without their bos and eos, in order, some at a time."""
    tokens = np.memmap(source / shard.file, before.dtype, mode="r")
    ends = np.fromfile(source / f"{shard.file}.index", INDEX_DTYPE).astype(np.int64)
    starts = np.concatenate([[0], ends[:-1]])
    if not (np.all(tokens[starts] == before.bos_token_id) and np.all(tokens[ends - 1] == before.eos_token_id)):
        raise RemapError(f"{source / shard.file}: its documents are not enclosed in bos and eos; prepare again")
    if tokens.max() >= before.vocab_size:
        raise RemapError(f"{source / shard.file}: holds token {tokens.max()}, outside the vocabulary; prepare again")
    first = 0
    while first < len(ends):
        last = max(first + 1, int(np.searchsorted(ends, starts[first] + BATCH_TOKENS, side="right")))
        yield [np.array(tokens[starts[n] + 1 : ends[n] - 1]) for n in range(first, last)]
        first = last


def _rank(shard: ShardMeta) -> int:
    """Number of a shard."""
    return int(Path(shard.file).stem)
