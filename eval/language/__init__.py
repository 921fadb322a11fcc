"""Language models on benchmarks and text.

lm.py            lm-eval on a run, checkpoint, export or any transformers model
local_tasks.py   the same on local files; local_formats.py knows their records; tasks/ are those that upstream lacks
held_out.py      lm-eval tasks made from held-out text
generate.py      sampled continuations
text_files.py    records and documents, judged as the tokenizer room judges them
"""
