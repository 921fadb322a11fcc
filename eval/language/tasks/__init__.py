"""lm-eval tasks that upstream lacks: YAML files with the prompts and metrics, and the functions they name.

They carry no data set: ``python -m eval lm --data DIR`` (`eval.language.local_tasks`) adds the local files.
"""
