"""Word images opened again for `replay`: stores and drawn words, as `WordRecognitionTask` describes them.

    {"kind": "words", "stores": [PATH, ...], "synthetic": {...} or null, "charset": "0123...", "image_shape": [H, W],
     "max_length": 25, "copies": 0, "contents": [SHA-256, ...]}

`contents` names what each source held, stores first: a batch is shown only where it is still the one that was trained.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from common.errors import DataError
from data_pipeline.replay_source import ReplaySource
from data_pipeline.source import DocumentSpan, Sample
from data_pipeline.words.source import WordSource
from data_pipeline.words.synthetic import SynthConfig, SynthWords
from tokenizer.characters import CharacterTokenizer


def describe_words(sources: list[WordSource | SynthWords], stores: list[str]) -> dict[str, Any]:
    """What `open_words` reads: see the top. `stores` are the paths of the first sources; drawn words come last."""
    first = sources[0]
    drawn = [source for source in sources if isinstance(source, SynthWords)]
    kept = [source for source in sources if isinstance(source, WordSource)]
    return {
        "kind": "words",
        "stores": stores,
        "synthetic": drawn[0].config.to_mapping() if drawn else None,
        "charset": first.tokenizer.characters,
        "image_shape": list(first.size),
        "max_length": first.max_length,
        "copies": kept[0].copies if kept else 0,
        "contents": [source.identity()["content"] for source in sources],
    }


def open_words(description: Mapping[str, Any]) -> list[ReplaySource]:
    """Stores in their order, then drawn words; shows labels, as they were trained."""
    tokenizer = CharacterTokenizer(description["charset"])
    shape, longest = tuple(description["image_shape"]), description["max_length"]

    def label(sample: Sample, span: DocumentSpan) -> str:
        return tokenizer.decode(sample["ids"])

    found = []
    for path in description["stores"]:
        # What was dropped or altered was within the run's limits then; here it is only to be the same.
        source = WordSource(path, tokenizer, shape, longest, description["copies"], max_dropped=1.0, max_altered=1.0)
        found.append(ReplaySource(source, path, label, partial(_image_name, source)))
    if description["synthetic"] is not None:
        drawn = SynthWords(SynthConfig.from_mapping(description["synthetic"]), tokenizer, shape, longest)
        found.append(ReplaySource(drawn, "drawn words", label, _word_number))
    for entry, content in zip(found, description["contents"], strict=True):
        if entry.source.identity()["content"] != content:
            raise DataError(f"{entry.place}: not the words of the run; words, images or fonts have changed since")
    return found


def _image_name(source: WordSource, span: DocumentSpan) -> str:
    return source.store.name(span.document)


def _word_number(span: DocumentSpan) -> str:
    return f"word {span.document}"
