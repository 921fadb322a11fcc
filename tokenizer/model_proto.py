"""The part of SentencePiece's model format that we read or change; everything else in a model is kept as it is.

sentencepiece ships generated classes for it (sentencepiece_model_pb2), but those refuse to be imported beside any
protobuf older than the one they were made with. These are described at first use and work with every protobuf.
Numbers and defaults are those of sentencepiece_model.proto.
"""

import math
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from common.errors import InputError

ModelProto = Any
"""An instance of `model_class()`: pieces, trainer_spec, normalizer_spec, denormalizer_spec."""

# Values of the enumerations: model types and kinds of pieces.
UNIGRAM_MODEL, BPE_MODEL = 1, 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

KINDS = frozenset({NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE})
MAX_PIECE = 512
"""Characters of an ordinary piece; SentencePiece trains 16 unless told otherwise."""
MAX_MODEL_BYTES = 2**27
"""Of a model file; those with a quarter of a million pieces have 5 million bytes."""

NORMALIZER_FIELDS = {
    "name": (1, "string", None),
    "precompiled_charsmap": (2, "bytes", None),
    "add_dummy_prefix": (3, "bool", "true"),
    "remove_extra_whitespaces": (4, "bool", "true"),
    "normalization_rule_tsv": (6, "string", None),
}
MESSAGES: dict[str, dict[str, tuple[int, str, str | None]]] = {
    "SentencePiece": {"piece": (1, "string", None), "score": (2, "float", None), "type": (3, "int32", "1")},
    "TrainerSpec": {
        "model_type": (3, "int32", "1"),
        "byte_fallback": (35, "bool", None),
        "unk_id": (40, "int32", "0"),
        "bos_id": (41, "int32", "1"),
        "eos_id": (42, "int32", "2"),
        "pad_id": (43, "int32", "-1"),
    },
    "NormalizerSpec": NORMALIZER_FIELDS,
    "ModelProto": {
        "pieces": (1, "repeated SentencePiece", None),
        "trainer_spec": (2, "TrainerSpec", None),
        "normalizer_spec": (3, "NormalizerSpec", None),
        "denormalizer_spec": (5, "NormalizerSpec", None),
    },
}
"""Message -> field -> number, type, default."""


class ModelFormatError(InputError, ValueError):
    """A file that is no SentencePiece model, or one with no exact counterpart."""


def parse_model(model: bytes, origin: str) -> ModelProto:
    """Parses a serialised SentencePiece model.

    Raises:
        ModelFormatError: the bytes are something else, named by `origin`.
    """
    proto = model_class()()
    try:
        proto.ParseFromString(model)
    except Exception as error:  # protobuf's DecodeError lives in a module that depends on its version
        raise ModelFormatError(f"{origin}: not a SentencePiece model ({error})") from error
    if not proto.pieces:
        raise ModelFormatError(f"{origin}: not a SentencePiece model (it has no pieces)")
    _check(proto, origin)
    return proto


def _check(proto: ModelProto, origin: str) -> None:
    """Refuses what SentencePiece refuses as well, and pieces so long that looking at every cut of them takes hours."""
    seen: set[str] = set()
    try:
        for number, piece in enumerate(proto.pieces):
            text, where = piece.piece, f"{origin}: piece {number}"
            if not text or text in seen:
                raise ModelFormatError(f"{where} is {'there twice' if text else 'empty'}")
            if piece.type == NORMAL and len(text) > MAX_PIECE:
                raise ModelFormatError(f"{where} has {len(text):,} characters, more than {MAX_PIECE}")
            if piece.type not in KINDS or not math.isfinite(piece.score):
                raise ModelFormatError(f"{where} has type {piece.type} and score {piece.score}, which cannot be")
            seen.add(text)
        specs = (proto.normalizer_spec, proto.denormalizer_spec)
        names = [(spec.name, spec.normalization_rule_tsv) for spec in specs]
    except UnicodeDecodeError as error:
        raise ModelFormatError(f"{origin}: a text in it is not UTF-8 ({error.reason})") from None
    del names  # read only to see that they are text
    if not 0 <= proto.trainer_spec.unk_id < len(proto.pieces):
        raise ModelFormatError(
            f"{origin}: unk_id {proto.trainer_spec.unk_id} is none of its {len(proto.pieces)} pieces"
        )
    if not any(piece.type == NORMAL for piece in proto.pieces):
        raise ModelFormatError(f"{origin}: holds no ordinary piece")


@cache
def model_class() -> type:
    """The protobuf class of a whole model."""
    file = descriptor_pb2.FileDescriptorProto(
        name="tinypi/sentencepiece_model.proto", package="tinypi", syntax="proto2"
    )
    for message, fields in MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, (number, kind, default) in fields.items():
            *repeated, type_name = kind.split()
            field = described.field.add(name=name, number=number, label=3 if repeated else 1)
            if type_name in MESSAGES:
                field.type, field.type_name = field.TYPE_MESSAGE, f".tinypi.{type_name}"
            else:
                field.type = getattr(field, f"TYPE_{type_name.upper()}")
            if default is not None:
                field.default_value = default
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tinypi.ModelProto"))
