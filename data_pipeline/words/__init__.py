"""Word images and their labels, from files or drawn.

source.py      WordSource: samples; augment.py changes copies
stores.py      LMDB, Parquet and folders (label_files.py)
labels.py      what a label loses before a model learns it
synthetic.py   words drawn from lists.py with fonts.py on backgrounds.py by render.py
replay.py      word images opened again for `replay`
"""
