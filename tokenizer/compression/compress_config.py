"""What `python -m tokenizer compress` is asked to do."""

from dataclasses import dataclass, field
from typing import Literal

from tokenizer.compression.selection import ModelShape
from tokenizer.inputs.broken_text import BrokenText
from tokenizer.inspection import check_labels


@dataclass(frozen=True)
class CompressConfig:
    """Cuts a smaller tokenizer out of a larger one: the pieces that a corpus uses most, with their order and scores."""

    tokenizer: str
    """SentencePiece model (BPE or unigram), tokenizer.json with a BPE model, a directory with one of them, a GGUF file
    or a directory with one, or a hub id."""
    corpus: list[str]
    """Files or directories (.jsonl, .json, .txt, each also .gz, .bz2, .xz, .zst; .parquet) whose tokens are counted; or
    directories of token shards that `python -m data_pipeline prepare` made with this tokenizer and that need no
    encoding."""
    vocab_size: int | Literal["auto"]
    """Pieces to keep. auto: the smallest number that covers more than 90 % of the corpus's tokens, if embedding and
    head are then less than 20 % of the model given by --width, --layers, --intermediate_size and --tied."""
    output: str
    """Directory for the tokenizer, vocabulary_map.json, report.json, coverage.png and fit.png. It appears when
    complete; an earlier result there is replaced."""
    closure: bool = True
    """Keep what the kept pieces are built from (for BPE their merge ancestors, without byte pieces all characters), at
    the cost of the rarest others. `--no_closure` is the published procedure; the report says what it loses."""
    sample: list[str] = field(default_factory=list)
    """Texts on which both tokenizers are compared, `label=PATH`: for example en=valid.en.jsonl zh=valid.zh.jsonl.
    None: a sample of the corpus, by script."""
    width: int = 256
    """Hidden size of the model whose embedding share is reported, and of vocab_size auto."""
    layers: int = 8
    """Its number of layers."""
    intermediate_size: int | None = None
    """Its feed-forward size. None: 8/3 of the width."""
    tied: bool = False
    """Whether its output head is its embedding."""
    widths: list[int] = field(default_factory=list)
    """Further hidden sizes at which the embedding share is reported."""
    counts: str | None = None
    """Folder for the counts, kept: an interrupted call continues, and other sizes, or a corpus that grew, cost only
    what is new. None: OUTPUT.counts, removed at the end."""
    workers: int = 0
    """Processes; 0: one per CPU core. They do not change the result."""
    sample_bytes: int = 1_000_000
    """Compare on at most this much of each language, a random sample of whole documents."""
    seed: int = 0
    """Chooses the sample."""
    text_field: str = "text"
    """Field or column that holds the text, also a nested one (`meta.text`)."""
    broken_text: BrokenText = "skip"
    """Documents of broken text (not UTF-8, half a surrogate pair): skip them, counted, an error above 1 % of all;
    replace what is broken by U+FFFD, counted; or refuse the first one."""

    def __post_init__(self) -> None:
        if not self.corpus:
            raise ValueError("corpus: name at least one file or directory")
        if isinstance(self.vocab_size, int) and self.vocab_size < 1:
            raise ValueError(f"vocab_size: must be at least 1, or auto, got {self.vocab_size}")
        if self.workers < 0:
            raise ValueError(f"workers: must be 0 or more, got {self.workers}")
        for name in ("width", "layers", "sample_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if min(self.widths, default=1) < 1:
            raise ValueError(f"widths: must be at least 1, got {min(self.widths)}")
        check_labels(self.sample)

    @property
    def shape(self) -> ModelShape:
        """The model of the embedding share."""
        return ModelShape(self.width, self.layers, self.intermediate_size, self.tied)
