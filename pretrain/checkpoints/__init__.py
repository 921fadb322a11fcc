"""Crash-safe checkpoints and exact resume.

checkpoint.py     written whole, checked, found again
checksums.py      sealed files; engine_files.py: those that DeepSpeed writes
whole_state.py    the whole state, independent of ranks; resharding.py cuts it anew
run_lock.py       one run a folder
"""
