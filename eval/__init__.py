"""Every measurement, and the reports. The door is `python -m eval COMMAND`; commands.py holds the options.

language/    lm-eval, with the hub's data or local files; held-out text; generation
words/       word accuracy of text recognisers
prompting/   visual models: losses, prompting with example pairs, pictures
probes/      collapse of hidden states, latency, forgetting
grid/        runs of variants and seeds, each done once; what is measured on them, statistics, laws
studies/     compare (and ablation), scaling, ladder, shapes, delvm: a grid and its report
report/      one self-contained report.html per run
models.py    opens whatever a user names as a model; harness_model.py wraps it for lm-eval
hooks.py     lm-eval during training
plots.py     figures
"""
