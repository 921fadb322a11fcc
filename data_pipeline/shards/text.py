"""Text for `prepare`: a document is bos + its tokens + eos (without a bos token: eos + its tokens + eos).

Cost: the encoder's (tokenizer/encoder.py), plus a few per cent to turn its lists into an array. A special token that is
spelled out in a text stays text: no document can contain the end of a document.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from data_pipeline.errors import PrepareError
from data_pipeline.shards.encoding import Encode
from data_pipeline.shards.parts import Plan, make_plan
from data_pipeline.shards.prepare_config import PrepareConfig
from data_pipeline.shards.read_part import ReadPart
from tokenizer.document_tokens import document_tokens
from tokenizer.encoder import open_encoder

DOCUMENT_OVERHEAD = 2**9
"""Characters that a document counts beside its own, so that short ones do not come by the million."""


@dataclass(frozen=True)
class TextEncoding:
    """Tokens between bos and eos."""

    bos_token_id: int
    """Put before each document."""
    eos_token_id: int
    """Put after each document."""
    batch_size: int = 2**19
    """Characters."""

    def size_of(self, document: Document) -> int:
        """Its characters."""
        return len(document.text) + DOCUMENT_OVERHEAD

    def open(self, tokenizer: Path) -> Encode:
        """Raises FileNotFoundError when there is no tokenizer.json."""
        encode = open_encoder(tokenizer)

        def encode_documents(documents: Sequence[Document]) -> tuple[list[list[int]], int]:
            texts = [document.text for document in documents]
            text_bytes = sum(len(text.encode()) for text in texts)
            return [[self.bos_token_id, *ids, self.eos_token_id] for ids in encode(texts)], text_bytes

        return encode_documents


class TextRecipe:
    """Raw text of `config`."""

    def __init__(self, config: PrepareConfig) -> None:
        from tokenizer.load import load_tokenizer

        self.config = config
        self.tokenizer = load_tokenizer(config.tokenizer)
        try:
            self.first, self.last = document_tokens(self.tokenizer, config.tokenizer)
        except ValueError as error:
            raise PrepareError(str(error)) from None

    def plan(self) -> Plan:
        """The parts of `make_plan`, its inputs completed by the tokenizer's identity."""
        from tokenizer.fingerprint import tokenizer_hash

        plan = make_plan(self.config)
        facts = {
            "hash": tokenizer_hash(self.tokenizer),
            "vocab_size": len(self.tokenizer),
            "bos_token_id": self.first,
            "eos_token_id": self.last,
        }
        return Plan(plan.parts, {**plan.inputs, "tokenizer": facts})

    def copy_tokenizer(self, target: Path) -> None:
        """See `copy_tokenizer` below."""
        copy_tokenizer(self.config.tokenizer, target)

    def reader(self, workspace: str) -> PipelineStep:
        """Reads documents."""
        return ReadPart(workspace, self.config.text_field, self.config.split, self.config.broken_text)

    def encoding(self) -> TextEncoding:
        """Tokens between bos and eos."""
        return TextEncoding(self.first, self.last)


def copy_tokenizer(source: str, target: Path) -> None:
    """Save the tokenizer in transformers' format, and its SentencePiece model if it has one beside it."""
    from tokenizer.load import load_tokenizer

    load_tokenizer(source).save_pretrained(target)
    model = Path(source) / "tokenizer.model"
    if model.is_file():
        shutil.copyfile(model, target / model.name)
    if not (target / "tokenizer.json").is_file():
        raise PrepareError(f"{source}: the tokenizer cannot be saved as tokenizer.json, which prepare encodes with")
