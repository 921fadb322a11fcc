"""Images as data, read-only and lazily.

tables.py   images that belong together, row by row: Parquet columns or folders
source.py   square images without labels as samples
"""
