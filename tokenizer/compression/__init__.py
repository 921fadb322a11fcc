"""A smaller tokenizer out of a larger one (docs/methods/tiny_lm.md: compact tokenizer).

compress.py     the command; compress_config.py, compress_report.py, compress_plots.py
counting.py     how often a corpus uses each id; stretches.py: what is encoded once although it occurs often
selection.py    which pieces stay; derivation.py: which others these need
sliceable.py    cuts them out: sliceable_sentencepiece.py, sliceable_json.py
"""
