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
    word_source.py   word images as samples: word_stores.py reads LMDB, Parquet and folders (label_files.py), labels.py
                     and images.py refuse by name what is broken, word_augment.py changes copies
    visual_pairs.py  raw images as the records of a task: image_tables.py reads them, visual_views.py cuts one window
                     from input and target, visual_tasks.py draws targets, visual_corruption.py adds noise and rain;
                     pairs_sheet.py shows them, pair_images.py writes them
    synth_words.py   words drawn from lists: word_lists.py, word_fonts.py, word_photographs.py, render_words.py
    replay_sources.py  what replay can open again, by the kind of data; replay_words.py does so for word images,
                     moved_data.py finds shards where they are now
    sample_words.py, sample_images.py   words and photographs (photographs_builtin.py) for a first run, split for good
                     by keyed_split.py, as sample.py splits text

The front door is `python -m data_pipeline`. A public name loads its module when first used: importing the room is
cheap.
"""
