"""Raw data -> deterministic, resumable batches.

    sample.py        a first corpus (corpus_builtin.py)     token_shards.py  shards as one mapped stream
    preparation.py   raw data -> shards: parts.py cuts      token_source.py  shards -> packed sequences
                     the input, read_part.py and            sentence_source.py  shards of images -> visual sentences
                     write_shard.py are the steps,          source.py        the Source protocol
                     executors.py runs them; recipe.py      mixture.py       several sources as one
                     tells text from images                 order.py         (seed, round, step) -> sample numbers
    meta.py          meta.json of a shard directory         permutation.py   a keyed permutation, per element
    identity.py      which data a run was trained on        loader.py        order -> this rank's micro-batches
                                                            round_order.py   the same over several rounds
                                                            replay.py        the documents of one step
    document_bounds.py  where documents begin in a micro-batch, for attention of variable length
    remap.py         shards -> shards of a compressed tokenizer; remap_ids.py says why that is exact

    image_source.py  images without labels as samples: image_stores.py reads files, folders and Parquet columns
    word_source.py   word images as samples: word_stores.py reads LMDB, Parquet and folders, labels.py and images.py
                     refuse by name what is broken, word_augment.py changes copies
    visual_pairs.py  raw images as the records of a task: image_tables.py reads them, visual_views.py cuts one window
                     from input and target, visual_tasks.py draws targets, visual_corruption.py adds noise and rain;
                     pairs_sheet.py shows them, pair_images.py writes them
    synth_words.py   words drawn from lists: word_lists.py, word_fonts.py, word_photographs.py, render_words.py
    replay_sources.py  what replay can open again, by the kind of data; replay_words.py does so for word images
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
    from data_pipeline.sentence_source import SentenceSource
    from data_pipeline.source import DocumentSpan, Sample, Source
    from data_pipeline.token_source import TokenSource
    from data_pipeline.visual_pairs import PairsConfig, PairSet

__all__ = [
    "Batch",
    "DataError",
    "DocumentSpan",
    "Loader",
    "Meta",
    "Mixture",
    "Order",
    "PairSet",
    "PairsConfig",
    "PrepareConfig",
    "RemapConfig",
    "RoundsOrder",
    "Sample",
    "Selection",
    "SentenceSource",
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
        "PairSet": "visual_pairs",
        "PairsConfig": "visual_pairs",
        "PrepareConfig": "prepare_config",
        "RemapConfig": "remap",
        "RoundsOrder": "round_order",
        "Sample": "source",
        "Selection": "round_order",
        "SentenceSource": "sentence_source",
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
