"""Token shards: datatrove's `.ds` files and meta.json, how they are made and how they are read.

prepare.py          raw data -> shards, resumable; prepare_config.py: what it is asked
parts.py            cuts its input; read_part.py and write_shard.py are its steps, executors.py runs them, workspace.py
                    is their folder, progress.py their bar
encoding.py         what a kind of raw material tells of itself: text.py, pairs.py
remap.py            shards -> shards of a compressed tokenizer; remap_ids.py says why that is exact
token_shards.py     shards as one mapped stream
token_source.py     shards -> packed sequences; sentence_source.py: shards of images -> visual sentences
"""
