"""Raw data -> deterministic, resumable batches. The door is `python -m data_pipeline`.

source.py        the Source protocol: len, sample(i), identity
mixture.py       several sources as one
order.py         (seed, round, step) -> sample numbers; permutation.py is keyed, per element
round_order.py   the same over several rounds
loader.py        order -> this rank's micro-batches; worker_signals.py: what its workers do when told to stop
identity.py      which data a run was trained on
replay.py        the documents of one step: replay_source.py is one source of it, replay_sources.py opens each kind
                 of data, moved_data.py finds where it lies now
document_bounds.py  where documents begin in a micro-batch, for attention of variable length
errors.py        one class per kind of mistake

shards/          raw text or images -> token shards (`prepare`, `remap`), and shards as sources
words/           word images as a source: stores, labels, drawing
images/          images and tables of images
pairs/           raw images as the records of a task
demo/            small data for a first run, from ordinary packages
"""
