"""A grid of training runs, and what is measured on it.

grid.py          variants times seeds, each cell once
preparation.py   definitions in a grid's YAML, and commands that run before its training
measures.py      what is measured on a run
statistics.py    paired differences, spreads, tables; resampling.py: intervals over test images and seeds
power_law.py     scaling laws and their baselines
"""
