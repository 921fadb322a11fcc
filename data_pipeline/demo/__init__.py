"""Small data for a first run, from ordinary packages or local files, split for good.

text.py            a corpus (`sample`); corpus_builtin.py is the one that packages carry
words.py           words to draw (`sample-words`)
photographs.py     crops of photographs (`sample-images`); photographs_builtin.py are those that packages carry
keyed_split.py     which side of a split something falls on
"""
