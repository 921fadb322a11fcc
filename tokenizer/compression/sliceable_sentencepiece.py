"""SentencePiece models that can be cut: pieces leave the model, everything else in it stays as it is.

The smaller model keeps every score. SentencePiece merges any two neighbours whose union is a piece, so removing a piece
changes how the pieces that contain it are built: derivation.py says what must stay.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer

from tokenizer.compression.derivation import MergeRanks
from tokenizer.compression.sliceable import SliceableTokenizer, is_special_name
from tokenizer.convert import SPACE, bpe_merges, to_backend, write_tokenizer
from tokenizer.encoder import Encoder, pipeline_of
from tokenizer.load import TokenizerLoadError
from tokenizer.model_proto import BPE_MODEL, NORMAL, ModelFormatError, ModelProto, model_class, parse_model

SPECIAL_IDS = ("unk_id", "bos_id", "eos_id", "pad_id")


class SentencePieceTokenizer(SliceableTokenizer):
    """A SentencePiece model, BPE or unigram.

    Args:
        proto: the model.
        origin: for messages.
        extras: further files of its directory to keep, by name (tokenizer_config.json, a chat template).

    Raises:
        TokenizerLoadError: the model is of another type, or cannot be expressed as tokenizer.json.
    """

    def __init__(self, proto: ModelProto, origin: str, extras: dict[str, bytes] | None = None):
        self.proto = proto
        self.origin = origin
        self.extras = extras or {}
        bpe = proto.trainer_spec.model_type == BPE_MODEL
        self.format = f"SentencePiece {'BPE' if bpe else 'unigram'}"
        self.names = [piece.piece for piece in proto.pieces]
        self.required = frozenset(
            id_ for id_, piece in enumerate(proto.pieces) if piece.type != NORMAL or is_special_name(piece.piece)
        )
        fallback = proto.trainer_spec.byte_fallback
        self.alphabet = frozenset(() if fallback else (id_ for id_ in self.ordinary if len(self.names[id_]) == 1))
        try:
            self._backend = to_backend(proto, origin)
        except ModelFormatError as error:
            raise TokenizerLoadError(str(error)) from error

    @cached_property
    def merge_ranks(self) -> list[MergeRanks]:  # type: ignore[override]
        """SentencePiece's order, and tokenizer.json's where pieces share a score (it cannot express a tie)."""
        if self.proto.trainer_spec.model_type != BPE_MODEL:
            return []
        merges = bpe_merges(self.proto)
        by_score = {(left, right): score for score, _, left, right in merges}
        scores = [piece.score for piece in self.proto.pieces if piece.type == NORMAL]
        if len(set(scores)) == len(scores):
            return [by_score]
        return [by_score, {(left, right): rank for rank, (_, _, left, right) in enumerate(merges)}]

    @property
    def ordinary(self) -> list[int]:
        """Ids of the pieces of type NORMAL; SentencePiece never matches one that is a single NUL."""
        return [id_ for id_, piece in enumerate(self.proto.pieces) if piece.type == NORMAL and piece.piece != "\0"]

    @property
    def backend(self) -> Tokenizer:
        """The converted pipeline."""
        return self._backend

    def cut(self, kept: Sequence[int]) -> "SentencePieceTokenizer":
        """The model of the pieces `kept`; the ids of <unk>, <s>, </s> and <pad> in it follow their pieces."""
        proto = model_class()()
        proto.CopyFrom(self.proto)
        proto.ClearField("pieces")
        proto.pieces.extend(self.proto.pieces[id_] for id_ in kept)
        new_ids = {old: new for new, old in enumerate(kept)}
        for name in SPECIAL_IDS:
            old = getattr(self.proto.trainer_spec, name)
            if old in new_ids:
                setattr(proto.trainer_spec, name, new_ids[old])
        return SentencePieceTokenizer(proto, self.origin, self.extras)

    def write(self, directory: Path) -> None:
        """Write tokenizer.model, tokenizer.json, tokenizer_config.json and the extras."""
        write_tokenizer(self._serialised, directory)
        for name, content in self.extras.items():
            (directory / name).write_bytes(content)

    def encoder(self) -> Encoder:
        """SentencePiece itself."""
        return model_encoder(self._serialised)

    @property
    def encoder_file(self) -> tuple[str, bytes]:
        """The model."""
        return "tokenizer.model", self._serialised

    def surface(self, id_: int) -> str:
        """The piece with SentencePiece's stand-in for a space replaced."""
        return self.names[id_].replace(SPACE, " ")

    @property
    def _serialised(self) -> bytes:
        return self.proto.SerializeToString(deterministic=True)

    def _engines(self) -> list[Encoder]:
        """tokenizer.json's engine, and SentencePiece without its normaliser."""
        proto = model_class()()
        proto.CopyFrom(self.proto)
        proto.normalizer_spec.Clear()
        proto.normalizer_spec.name = "identity"
        proto.normalizer_spec.add_dummy_prefix = False
        proto.normalizer_spec.remove_extra_whitespaces = False
        return [*super()._engines(), model_encoder(proto.SerializeToString(deterministic=True))]


def model_encoder(model: bytes) -> Encoder:
    """SentencePiece's own encoder of a serialised model."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return lambda texts: processor.encode(list(texts), num_threads=1)


def find_model(path: str | Path) -> Path | None:
    """The SentencePiece model that decides the ids of a file or directory; None if something else does.

    In a directory with a tokenizer.json that file decides, unless it is the same pipeline (as in those we write).
    """
    path = Path(path)
    if path.is_file():
        return None if path.suffix in (".json", ".gguf") else path
    models = sorted(path.glob("*.model")) if path.is_dir() else []
    if len(models) != 1:
        return None
    whole = path / "tokenizer.json"
    if whole.is_file():
        try:
            given = pipeline_of(Tokenizer.from_file(str(whole)))
            made = pipeline_of(to_backend(parse_model(models[0].read_bytes(), str(models[0])), str(models[0])))
        except Exception:  # tokenizers raises bare Exception; load_tokenizer will say what is wrong with the directory
            return None
        if given != made:
            return None
    return models[0]


def open_model(file: Path) -> SentencePieceTokenizer:
    """Opens a SentencePiece model, with what lies beside its tokenizer.json.

    Raises:
        TokenizerLoadError: no SentencePiece model, or one of a type that cannot be cut.
    """
    try:
        proto = parse_model(file.read_bytes(), str(file))
    except ModelFormatError as error:
        raise TokenizerLoadError(str(error)) from error
    beside = (file.parent / name for name in ("tokenizer_config.json", "chat_template.jinja"))
    whole = (file.parent / "tokenizer.json").is_file()
    return SentencePieceTokenizer(
        proto, str(file), {extra.name: extra.read_bytes() for extra in beside if whole and extra.is_file()}
    )
