"""SentencePiece model -> tokenizer.json with exactly the same ids, and the directory that AutoTokenizer loads.

transformers' own conversion differs from SentencePiece in the places below; each line is a test.

    whitespace      only the model's own switches are applied (dummy prefix, removal of extra spaces), nothing else
    U+2581 "▁"      SentencePiece's stand-in for a space. The models that we train escape a real one (see ESCAPES), so
                    that it survives; foreign models turn it into a space, here as there
    literal "</s>"  text, as in SentencePiece, never the control token: `split_special_tokens` is on
    literal "<0x41>" text as well: a byte piece cannot be reached from its own name
    user symbols    stay whole, longest first
    normalisation   the model's own character map

Exact for every model that we train. A foreign unigram model may cut a text differently where two ways score the same
but for float32 rounding (2 of 20,000 fuzzed texts, 20,000 pieces), and foreign BPE pieces of equal score may merge in
another order. Cost: a second for 100,000 pieces (the merge list of BPE is every split of a piece into two pieces).
"""

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE, Unigram

from common.atomic_files import write_whole
from tokenizer.model_proto import (
    BPE_MODEL,
    BYTE,
    CONTROL,
    NORMAL,
    UNIGRAM_MODEL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    ModelFormatError,
    ModelProto,
    parse_model,
)

SPACE = "\u2581"
ESCAPE = "\x10"
ESCAPES = {SPACE: ESCAPE + "1", ESCAPE: ESCAPE + "0"}
"""U+2581 and U+0010 (data link escape) -> their spelling inside our models; reversible for every text."""
LOSSLESS = "tinypi_lossless"
"""Name of the normaliser of a model whose character map is exactly ESCAPES."""

USER_SYMBOL_SCORE = -0.1
"""What a unigram model of SentencePiece gives a user-defined symbol, whatever its length."""


def to_backend(proto: ModelProto, origin: str) -> Tokenizer:
    """Builds the `tokenizers` pipeline of a SentencePiece model; ids are the model's piece numbers.

    Raises:
        ModelFormatError: the model's type or piece kinds have no exact counterpart.
    """
    if any(piece.type == UNUSED for piece in proto.pieces):
        raise ModelFormatError(f"{origin}: holds pieces of type UNUSED, which tokenizer.json cannot express")
    added = [UNKNOWN, CONTROL]
    if proto.trainer_spec.model_type == BPE_MODEL:
        backend = Tokenizer(_bpe(proto))
        added.append(USER_DEFINED)
    elif proto.trainer_spec.model_type == UNIGRAM_MODEL:
        backend = Tokenizer(_unigram(proto))
    else:
        raise ModelFormatError(f"{origin}: only BPE and unigram models can be converted, this is a word or char model")
    backend.normalizer = normalizers.Sequence(list(_normalizers(proto)))
    backend.decoder = decoders.Sequence(list(_decoders(proto)))
    backend.add_tokens(
        [
            AddedToken(piece.piece, normalized=False, special=piece.type != USER_DEFINED)
            for piece in proto.pieces
            if piece.type in added
        ]
    )
    bos = proto.trainer_spec.bos_id
    if 0 <= bos < len(proto.pieces):
        name = proto.pieces[bos].piece
        backend.post_processor = processors.TemplateProcessing(
            single=f"{name}:0 $A:0", pair=f"{name}:0 $A:0 {name}:1 $B:1", special_tokens=[(name, bos)]
        )
    backend.encode_special_tokens = True
    return backend


def special_names(proto: ModelProto) -> dict[str, str]:
    """`bos_token`, `eos_token`, `unk_token` and `pad_token` of a model, as far as it has them."""
    spec = proto.trainer_spec
    ids = {"bos_token": spec.bos_id, "eos_token": spec.eos_id, "unk_token": spec.unk_id, "pad_token": spec.pad_id}
    return {name: proto.pieces[id_].piece for name, id_ in ids.items() if 0 <= id_ < len(proto.pieces)}


def tokenizer_config(proto: ModelProto) -> dict[str, object]:
    """The content of tokenizer_config.json; also the keyword arguments of `PreTrainedTokenizerFast`."""
    names = special_names(proto)
    return {
        **names,
        "add_bos_token": "bos_token" in names,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        "model_input_names": ["input_ids", "attention_mask"],
    }


def write_tokenizer(model: bytes, directory: str | Path) -> None:
    """Writes tokenizer.model, tokenizer.json and tokenizer_config.json for `AutoTokenizer.from_pretrained(directory)`.

    Args:
        model: a serialised SentencePiece model.
        directory: made if missing; files of these names are replaced.
    """
    directory = Path(directory)
    proto = parse_model(model, str(directory))
    backend = to_backend(proto, str(directory))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **tokenizer_config(proto)}
    contents = {
        "tokenizer.model": model,
        "tokenizer.json": (backend.to_str(pretty=True) + "\n").encode("utf-8"),
        "tokenizer_config.json": (json.dumps(config, indent=1) + "\n").encode("utf-8"),
    }
    for name, content in contents.items():
        write_whole(directory / name, content)


def bpe_merges(proto: ModelProto) -> list[tuple[float, int, str, str]]:
    """Merges of a BPE model as (-score of the union, length of the left part, left, right), in order of priority.

    SentencePiece merges any two neighbours whose union is a piece, best score first: so every split is a merge.
    """
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == NORMAL and piece.piece != "\0"}
    return sorted(
        (-score, len(left), left, right)
        for piece, score in scores.items()
        for left, right in ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        if left in scores and right in scores
    )


def _bpe(proto: ModelProto) -> BPE:
    return BPE(
        vocab={_bpe_name(id_, piece.piece): id_ for id_, piece in enumerate(proto.pieces)},
        merges=[(left, right) for _, _, left, right in bpe_merges(proto)],
        unk_token=proto.pieces[proto.trainer_spec.unk_id].piece,
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
    )


def _bpe_name(id_: int, piece: str) -> str:
    """SentencePiece never matches a piece that is a single NUL character (it uses the byte instead)."""
    return f"<unused_{id_}>" if piece == "\0" else piece


def _unigram(proto: ModelProto) -> Unigram:
    """Viterbi over the same scores. User symbols compete in it as well, with the score SentencePiece gives them.

    Unknown, control and byte pieces get a score no path through them can win with: their names are plain text.
    """
    unreachable = 100 * min(piece.score for piece in proto.pieces if piece.type == NORMAL) - 100
    scores = {USER_DEFINED: USER_SYMBOL_SCORE, UNKNOWN: unreachable, CONTROL: unreachable, BYTE: unreachable}
    vocab = [(piece.piece, scores.get(piece.type, piece.score)) for piece in proto.pieces]
    return Unigram(vocab, unk_id=proto.trainer_spec.unk_id, byte_fallback=proto.trainer_spec.byte_fallback)


def _normalizers(proto: ModelProto) -> Iterator[normalizers.Normalizer]:
    spec = proto.normalizer_spec
    if spec.name == LOSSLESS:
        for character in (ESCAPE, SPACE):
            yield normalizers.Replace(character, ESCAPES[character])
    elif spec.precompiled_charsmap:
        yield normalizers.Precompiled(spec.precompiled_charsmap)
    if spec.remove_extra_whitespaces:
        yield normalizers.Replace(Regex(f"^[ {SPACE}]+|[ {SPACE}]+$"), "")
        yield normalizers.Replace(Regex(f"[ {SPACE}]+"), " ")
    if spec.add_dummy_prefix:
        yield normalizers.Prepend(SPACE)
    yield normalizers.Replace(" ", SPACE)


def _decoders(proto: ModelProto) -> Iterator[decoders.Decoder]:
    yield decoders.Replace(SPACE, " ")
    yield decoders.ByteFallback()
    yield decoders.Fuse()
    if proto.normalizer_spec.name == LOSSLESS:
        for character in (SPACE, ESCAPE):
            yield decoders.Replace(ESCAPES[character], character)
    if proto.normalizer_spec.add_dummy_prefix:
        yield decoders.Strip(" ", 1, 0)
