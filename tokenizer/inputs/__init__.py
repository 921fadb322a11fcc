"""Documents and images out of files; what is broken is named with its place.

documents.py      documents of .jsonl, .json, .txt and .parquet files; corpus.py: of many, under one progress bar
broken_text.py    one policy for what is not UTF-8
sampling.py       a bounded sample of a stream, the same for the same seed
images.py         image bytes to pixels; image_stores.py: files, folders and Parquet columns of them
"""
