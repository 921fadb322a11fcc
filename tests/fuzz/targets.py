"""What is fuzzed: a small sound file of every kind from elsewhere, its reader, and the errors it may raise."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.mutations import Frame, header, metadata, whole

DOCUMENTS, VOCABULARY = 12, 384
TEXTS = ["the king said unto his people that every river runs to the sea", "我们看书", "and the sea is never full"]


@dataclass(frozen=True)
class Target:
    """One kind of file."""

    name: str
    examples: int
    """Mutated inputs of an ordinary test."""
    files: Sequence[tuple[str, Frame | None]]
    """Files in the folder, each damaged in turn, and where their JSON lies."""
    prepare: Callable[[Path], None]
    """Writes the sound files into a folder."""
    read: Callable[[Path], None]
    """Reads the folder as its user does, and looks at what comes back."""
    errors: tuple[type[Exception], ...]
    """What the reader may raise."""
    names_file: bool = True
    """Whether every message names the file; a command line's names the field, whoever has set it."""


def _write_shards(folder: Path) -> None:
    from common.token_shards import Meta, ShardMeta, sha256_of

    random, shards = np.random.default_rng(0), []
    for number in range(2):
        ends = np.cumsum(random.integers(3, 20, DOCUMENTS)).astype("<u8")
        tokens = random.integers(0, VOCABULARY, int(ends[-1])).astype("<u2")
        path, index = folder / f"{number:05d}.ds", folder / f"{number:05d}.ds.index"
        path.write_bytes(tokens.tobytes())
        index.write_bytes(ends.tobytes())
        shards.append(ShardMeta(path.name, len(tokens), DOCUMENTS, 999, sha256_of(path), sha256_of(index)))
    Meta("0" * 64, VOCABULARY, 2, 1, 2, shards, inputs={"files": [{"name": "a"}], "tokenizer": {}}).save(folder)


def _read_shards(folder: Path) -> None:
    from data_pipeline.errors import SourceError
    from data_pipeline.shards.token_source import TokenSource

    source = TokenSource(folder, 8)
    for number in {0, 1, len(source) // 2, len(source) - 1}:
        sample = source.sample(number)
        assert all(len(array) == 8 for array in sample.values())
        assert sample["input_ids"].min() >= 0 and sample["input_ids"].max() < source.meta.vocab_size
        assert sample["position_ids"].min() >= 0
        source.documents(number)
    try:
        source.sample(len(source))
        raise AssertionError("a sample past the end was served")
    except SourceError:
        pass
    TokenSource(folder, 8, verify=True)


def _read_shards_elsewhere(folder: Path) -> None:
    from arch.surgery.calibration import draw_rows, open_shards
    from common.errors import ShardError
    from tokenizer.compression.counting import CountingError, count_shards

    try:
        assert count_shards(folder, "0" * 64, VOCABULARY).documents >= 0
    except (CountingError, ShardError) as error:
        assert str(folder) in str(error)
    draw_rows(open_shards([folder]), [2], 8, 0)


def _write_checkpoint(folder: Path) -> None:
    from pretrain.checkpoints.checksums import META_NAME, file_hashes

    (folder / "engine").mkdir()
    for name in ("model.safetensors", "config.json", "engine/a.pt"):
        (folder / name).write_bytes(name.encode())
    order = {"sizes": [64], "batch_size": 8, "seed": 0, "weights": None, "rounds": [{"round": 2, "first_step": 9}]}
    meta = {
        "format": 1, "step": 7, "data_step": 8, "skipped": 1, "world_size": 2, "zero_stage": 1,
        "identity": {"order": order, "sources": [{"kind": "toy"}]}, "sha256": file_hashes(folder),
    }  # fmt: skip
    (folder / META_NAME).write_text(json.dumps(meta))


def _read_checkpoint(folder: Path) -> None:
    from data_pipeline.identity import explain_mismatch
    from pretrain.checkpoints.checkpoint import Saved
    from pretrain.checkpoints.checksums import check_files

    problem = check_files(folder)
    assert problem is None or isinstance(problem, str)
    saved = Saved.read(folder)
    assert saved.position.step >= 0 and len(saved.weights) == 64
    explain_mismatch(saved.meta["identity"], {"order": {"seed": 1}})


def _write_rounds(folder: Path) -> None:
    from data_pipeline.round_order import Selection
    from pretrain.rounds.ledger import Ledger

    losses = np.linspace(1, 2, 20, dtype=np.float32)
    Ledger(np.arange(20), losses, np.ones(20, np.float32), {"round": 1, "unit": "batch"}).save(folder / "l.safetensors")
    (folder / "s.safetensors").write_bytes(Selection(2, 20, "batch", np.arange(0, 20, 2), {"asked": {}}).to_bytes())


def _read_rounds(folder: Path) -> None:
    from data_pipeline.round_order import RoundsOrder, Selection
    from pretrain.rounds.ledger import Ledger

    ledger = Ledger.load(folder / "l.safetensors")
    assert len(ledger.ids_N) == len(ledger.losses_N) == len(ledger.counts_N)
    if len(ledger.ids_N):
        ledger.updated(ledger.ids_N[:1], np.ones(1, np.float32), np.ones(1, np.float32))
    selection = Selection.load(folder / "s.safetensors")
    selection.identity()
    if selection.round == 2 and selection.units.size:
        order = RoundsOrder([1000], 4, 0, None, [selection])
        assert len(order.units(selection.first_step, selection.unit)) in (1, 4)


def _write_run(folder: Path) -> None:
    (folder / "shards" / "tokenizer").mkdir(parents=True)
    _write_shards(folder / "shards")
    _copy_tokenizer(folder / "shards" / "tokenizer")
    from data_pipeline.shards.token_source import TokenSource

    size = len(TokenSource(folder / "shards", 8))
    order = {
        "sizes": [size], "batch_size": 4, "seed": 0, "weights": [1.0], "round": 0, "kind": "tokens",
        "shards": [str(folder / "shards")], "sequence_length": 8, "document_mask": True,
    }  # fmt: skip
    (folder / "order.json").write_text(json.dumps(order))


def _read_run(folder: Path) -> None:
    from data_pipeline.replay import ReplayConfig, replay

    assert list(replay(ReplayConfig(str(folder), 3)))


def _write_map(folder: Path) -> None:
    from common.vocabulary_map import VocabularyMap

    VocabularyMap("0" * 64, "1" * 64, 50, list(range(0, 50, 3))).save(folder)


def _read_map(folder: Path) -> None:
    from arch.surgery.vocabulary import read_kept_rows
    from common.vocabulary_map import VocabularyMap

    loaded = VocabularyMap.load(folder)
    assert len(loaded.new_ids) == loaded.donor_vocab_size
    read_kept_rows(folder)


def _write_patches(folder: Path) -> None:
    from tokenizer.visual.patches import PatchTokenizer

    pixels = np.random.default_rng(0).integers(0, 256, (16, 48), dtype=np.uint8)
    PatchTokenizer(pixels, 16).save(folder)


def _write_vq(folder: Path) -> None:
    import torch

    from arch.vq.configuration import VisualTokenizerConfig
    from arch.vq.vq_model import VqModel
    from tokenizer.visual.network import NetworkTokenizer

    torch.manual_seed(0)
    small = VisualTokenizerConfig(image_size=16, grid=4, width=8, blocks=1, codes=16, code_dim=4)
    NetworkTokenizer(VqModel(small)).save(folder)


def _read_visual(folder: Path) -> None:
    from tokenizer.visual.load import load_visual_tokenizer

    tokenizer = load_visual_tokenizer(folder)
    images = np.zeros((1, tokenizer.image_size, tokenizer.image_size, 3), np.uint8)
    ids = tokenizer.encode(images)
    assert ids.max() < tokenizer.vocab_size and tokenizer.decode(ids).shape == images.shape


def _tokenizer() -> Path:
    """A small SentencePiece tokenizer, trained once in a process."""
    import tempfile

    from tokenizer.train import TrainConfig, train_tokenizer

    if not _trained:
        folder = Path(tempfile.mkdtemp(prefix="fuzz_tokenizer_"))
        lines = [json.dumps({"id": str(n), "text": TEXTS[n % 3]}) for n in range(30)]
        (folder / "text.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        train_tokenizer(TrainConfig([str(folder / "text.jsonl")], vocab_size=370, output=str(folder / "tokenizer")))
        _trained.append(folder / "tokenizer")
    return _trained[0]


_trained: list[Path] = []


def _copy_tokenizer(folder: Path, *names: str) -> None:
    for file in _tokenizer().iterdir():
        if file.is_file() and (not names or file.name in names):
            (folder / file.name).write_bytes(file.read_bytes())


def _try_tokenizer(path: Path) -> None:
    from tokenizer.load import load_tokenizer

    tokenizer = load_tokenizer(path)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert all(isinstance(number, int) and number >= 0 for number in ids)


def _write_yaml(folder: Path) -> None:
    content = {
        "task": {"class_path": "pretrain.tasks.LanguageModelTask", "init_args": {"sequence_length": 32, "model": "m"}},
        "steps": 10, "batch": {"size": 8, "micro_size": 2}, "optimizer": {"lr": 0.1, "betas": [0.9, 0.95]},
        "hooks": [], "output": "runs/x", "title": "t", "variants": {"a": {}, "b": {"seed": 1}},
    }  # fmt: skip
    (folder / "a.yaml").write_text(json.dumps(content, indent=1))


def _read_yaml(folder: Path) -> None:
    from eval.grid.grid import read_mapping

    repr(read_mapping(folder / "a.yaml"))  # an alias bomb would fill memory here


def _write_train_yaml(folder: Path) -> None:
    content = {
        "task": {"class_path": "tests.pretrain.toy.ToyTask", "init_args": {"size": 64, "poison": [1]}},
        "steps": 10, "batch": {"size": 8, "micro_size": 2}, "optimizer": {"lr": 0.1, "betas": [0.9, 0.95]},
        "output": "runs/x", "rounds": {"count": 1}, "engine": {"zero_stage": 1, "deepspeed": {"a": [1]}},
    }  # fmt: skip
    (folder / "a.yaml").write_text(json.dumps(content, indent=1))


def _read_train_yaml(folder: Path) -> None:
    from pretrain.command_line import parse
    from pretrain.config import TrainConfig

    config, text = parse(["--config", str(folder / "a.yaml")])
    assert isinstance(config, TrainConfig) and isinstance(text, str)


def _write_model_config(folder: Path) -> None:
    shape = {
        "vocab_size": 384, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "series_terms": 2,
        "num_attention_heads": 2, "shortcut_count": 1, "shortcut_reduction": 4, "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "shape.yaml").write_text(json.dumps(shape))
    (folder / "config.json").write_text(json.dumps({"model_type": "pangu_pi", "rope_theta": 1e4, **shape}))


def _read_model_config(folder: Path) -> None:
    from arch.pangu_pi.accounting import count_parameters
    from arch.pangu_pi.load_config import load_model_config

    for file in ("shape.yaml", "config.json"):
        assert count_parameters(load_model_config(folder / file)).total > 0


def _write_engine(folder: Path) -> None:
    import torch

    torch.save({"module": {"w": torch.ones(4, 4)}, "shapes": [torch.Size([4])], "step": 3}, folder / "a.pt")


def _read_engine(folder: Path) -> None:
    from pretrain.checkpoints.engine_files import read_engine_file

    repr(read_engine_file(folder / "a.pt"))


def _write_record(folder: Path) -> None:
    rows = [{"kind": "train", "step": n, "loss": 2.0, "tokens": 8, "seconds": 1.0} for n in range(3)]
    (folder / "metrics.jsonl").write_text(json.dumps(rows[0]))
    (folder / "config.yaml").write_text(json.dumps({"task": {"class_path": "a.LanguageModelTask"}}))
    (folder / "audit.json").write_text(json.dumps({"parameters": "3"}))
    (folder / "samples.json").write_text(json.dumps([{"prompt": "a", "text": "b"}]))
    suggestion = {"reason": "Look again at {run}.", "command": "{train}", "unless_evaluated": True}
    facts = {"task": "a.LanguageModelTask", "kind": "b", "text_samples": True, "suggestions": [suggestion]}
    (folder / "task.json").write_text(json.dumps(facts))


def _read_record(folder: Path) -> None:
    from eval.report.run_record import read_run
    from eval.report.suggestions import suggestions

    record = read_run(folder)
    assert isinstance(record.facts.task, str) and suggestions(record) is not None and isinstance(record.missing, list)
    record.series("train", "step")


def targets() -> list[Target]:
    """All of them; the errors' classes are imported here, so that a test can count examples without them."""
    from arch.surgery.errors import CalibrationError
    from common.config_file import ModelConfigError
    from common.errors import DataError, ShardError
    from common.vocabulary_map import VocabularyMapError
    from eval.grid.grid import GridError
    from eval.report.run_record import RunNotFoundError
    from pretrain.errors import CheckpointError, ConfigurationError, LedgerError
    from tokenizer.load import TokenizerLoadError
    from tokenizer.visual.base import VisualTokenizerError

    def loads(name: str) -> Callable[[Path], None]:
        return lambda folder: _try_tokenizer(folder / name)

    def copies(*names: str) -> Callable[[Path], None]:
        return lambda folder: _copy_tokenizer(folder, *names)

    shard_files = [("meta.json", whole), ("00000.ds", None), ("00001.ds.index", None)]
    rounds = [("l.safetensors", header), ("l.safetensors", metadata), ("s.safetensors", header)]
    rounds.append(("s.safetensors", metadata))
    visual = [("visual_tokenizer.json", whole), ("model.safetensors", header)]
    record = [(name, whole) for name in ("metrics.jsonl", "config.yaml", "audit.json", "samples.json", "task.json")]
    config_files: list[tuple[str, Any]] = [("shape.yaml", whole), ("config.json", whole)]
    directory = [("tokenizer_config.json", whole), ("tokenizer.json", whole)]
    tokenizer_error = (TokenizerLoadError,)
    return [
        Target("shards", 1600, shard_files, _write_shards, _read_shards, (DataError,)),
        Target("shards, other readers", 800, shard_files, _write_shards, _read_shards_elsewhere,
               (CalibrationError, ShardError)),
        Target("checkpoint meta.json", 1400, [("meta.json", whole)], _write_checkpoint, _read_checkpoint,
               (CheckpointError,)),
        Target("ledger and selection", 1600, rounds, _write_rounds, _read_rounds, (DataError, LedgerError)),
        Target("order.json", 600, [("order.json", whole)], _write_run, _read_run,
               (DataError, TokenizerLoadError, FileNotFoundError)),
        Target("vocabulary_map.json", 700, [("vocabulary_map.json", whole)], _write_map, _read_map,
               (VocabularyMapError,)),
        Target("visual tokenizer, patches", 700, visual, _write_patches, _read_visual, (VisualTokenizerError,)),
        Target("visual tokenizer, vq", 200, visual, _write_vq, _read_visual, (VisualTokenizerError,)),
        Target("tokenizer.json", 700, [("tokenizer.json", whole)], copies("tokenizer.json"), loads("tokenizer.json"),
               tokenizer_error),
        Target("SentencePiece model", 900, [("tokenizer.model", None)], copies("tokenizer.model"),
               loads("tokenizer.model"), tokenizer_error),
        Target("tokenizer directory", 150, directory, copies(), loads(""), tokenizer_error),
        Target("YAML", 1200, [("a.yaml", whole)], _write_yaml, _read_yaml, (GridError,)),
        Target("YAML of a run", 60, [("a.yaml", whole)], _write_train_yaml, _read_train_yaml, (ConfigurationError,),
               names_file=False),
        Target("model configuration", 500, config_files, _write_model_config, _read_model_config, (ModelConfigError,)),
        Target("engine files", 400, [("a.pt", None)], _write_engine, _read_engine, (CheckpointError,)),
        Target("run record", 500, record, _write_record, _read_record, (RunNotFoundError,)),
    ]  # fmt: skip
