"""Documents and images out of files; what is broken is named with its place.

documents.py      documents of .jsonl, .json, .txt and .parquet files; corpus.py: of many, under one progress bar
broken_text.py    one policy for what is not UTF-8
sampling.py       a bounded sample of a stream, the same for the same seed
images.py         image bytes to pixels; image_table.py: rows of images, words and classes out of files and Parquet
image_stores.py   opens files, folders and Parquet columns of images as such a table
"""
