"""Every measurement, and the reports: lm-eval, hidden-state collapse, forgetting, ablations.

__main__.py, commands.py        python -m eval lm | held-out | collapse | forgetting | report | ...; their options
lm.py, loading.py               lm-eval on a run, checkpoint, export or any transformers model
local_tasks.py, local_formats.py, tasks/   lm-eval on local files in place of the hub; tasks that upstream lacks
held_out.py                     lm-eval tasks made from held-out text
hooks.py                        lm-eval during training
collapse.py                     diversity, effective dimension and isotropy per layer
forgetting.py                   loss on each part of a run's data, when it was trained and at the end
ocr.py, recognisers.py          word accuracy of text recognisers, ours and others; ocr_sheet.py draws words
vision.py                       visual models: losses per task, prompting with example pairs, baselines, pictures
delvm.py, delvm_report.py       DeLVM's claims: balance, distillation, prompting
ablation.py, ablation_report.py a grid of variants and seeds, its tables and plots
report.py, templates/, plots.py one self-contained report.html per run; run_record.py reads what the run left,
                                report_tables.py, pictures.py, suggestions.py: its parts
"""

import importlib
from typing import Any

_HOMES = {
    "LmEvalHook": "hooks",
    "evaluate": "lm",
    "evaluate_model": "lm",
    "load_tasks": "lm",
    "load_model": "loading",
    "make_tasks": "held_out",
    "measure_collapse": "collapse",
    "write_report": "report",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Imports a public name on first use, so that `import eval` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'eval' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
