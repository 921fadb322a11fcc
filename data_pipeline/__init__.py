"""Raw data -> deterministic, resumable batches.

    sample.py        a first corpus (corpus_builtin.py)     token_source.py  shards -> packed sequences
    preparation.py   raw text -> shards: parts.py cuts      source.py        the Source protocol
                     the input, read_part.py and            mixture.py       several sources as one
                     write_shard.py are the steps,          order.py         (seed, round, step) -> sample numbers
                     executors.py runs them                 permutation.py   a keyed permutation, per element
    meta.py          meta.json of a shard directory         loader.py        order -> this rank's micro-batches
    identity.py      which data a run was trained on        round_order.py   the same over several rounds
                                                            replay.py        the documents of one step
    remap.py         shards -> shards of a compressed tokenizer; remap_ids.py says why that is exact

    word_source.py   word images as samples: word_stores.py reads LMDB, Parquet and folders, labels.py and images.py
                     refuse by name what is broken, word_augment.py changes copies
    synth_words.py   words drawn from lists: word_lists.py, word_fonts.py, word_photographs.py, render_words.py
    sample_words.py, sample_images.py   words and photographs (photographs_builtin.py) for a first run, split for good
                     by keyed_split.py, as sample.py splits text

The front door is `python -m data_pipeline`. A public name loads its module when first used: importing the room is
cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_pipeline.errors import DataError
    from data_pipeline.identity import explain_mismatch, fingerprint
    from data_pipeline.loader import Batch, Loader, collate_tokens
    from data_pipeline.meta import Meta
    from data_pipeline.mixture import Mixture
    from data_pipeline.order import Order
    from data_pipeline.preparation import prepare
    from data_pipeline.prepare_config import PrepareConfig
    from data_pipeline.remap import RemapConfig, remap
    from data_pipeline.round_order import RoundsOrder, Selection, first_visits, selection_path
    from data_pipeline.source import DocumentSpan, Sample, Source
    from data_pipeline.token_source import TokenSource

__all__ = [
    "Batch",
    "DataError",
    "DocumentSpan",
    "Loader",
    "Meta",
    "Mixture",
    "Order",
    "PrepareConfig",
    "RemapConfig",
    "RoundsOrder",
    "Sample",
    "Selection",
    "Source",
    "TokenSource",
    "collate_tokens",
    "explain_mismatch",
    "fingerprint",
    "first_visits",
    "prepare",
    "remap",
    "selection_path",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    modules = {
        "Batch": "loader",
        "DataError": "errors",
        "DocumentSpan": "source",
        "Loader": "loader",
        "Meta": "meta",
        "Mixture": "mixture",
        "Order": "order",
        "PrepareConfig": "prepare_config",
        "RemapConfig": "remap",
        "RoundsOrder": "round_order",
        "Sample": "source",
        "Selection": "round_order",
        "Source": "source",
        "TokenSource": "token_source",
        "collate_tokens": "loader",
        "explain_mismatch": "identity",
        "fingerprint": "identity",
        "first_visits": "round_order",
        "prepare": "preparation",
        "remap": "remap",
        "selection_path": "round_order",
    }
    return getattr(import_module(f"{__name__}.{modules[name]}"), name)
