"""Every measurement, and the reports: lm-eval, hidden-state collapse, forgetting, ablations, scaling laws.

__main__.py, commands.py        python -m eval lm | held-out | collapse | forgetting | report | ...; their options
lm.py, loading.py               lm-eval on a run, checkpoint, export or any transformers model
harness_model.py                what lm-eval asks: text alone, whatever its length, in a batch that fits
local_tasks.py, local_formats.py, tasks/   lm-eval on local files in place of the hub; tasks that upstream lacks
held_out.py                     lm-eval tasks made from held-out text
hooks.py                        lm-eval during training
collapse.py                     diversity, effective dimension and isotropy per layer
forgetting.py                   loss on each part of a run's data, when it was trained and at the end
ocr.py, recognisers.py          word accuracy of text recognisers, ours and others; ocr_sheet.py draws words
vision.py                       visual models: losses per task, prompting with example pairs, baselines, pictures
delvm.py, delvm_report.py       DeLVM's claims: balance, distillation, prompting
grid.py, grid_report.py         runs of variants and seeds, each done once; statistics and tables of all grids
grid_preparation.py             definitions in a grid's YAML, and commands that run before its training
grid_measures.py                what is measured on a run of any task, and what by its kind
ablation.py, ablation_report.py a grid of language models: collapse and latency beside the loss
compare.py, compare_report.py   a grid of any task: differences to a base, along an axis
scaling.py, scaling_fits.py     sizes x volumes of any task, laws with the largest held out; scaling_report.py,
                                scaling_plots.py write them
power_law.py, resampling.py     the laws, their baselines, and their intervals over test images and seeds
report.py, templates/, plots.py one self-contained report.html per run; run_record.py reads what the run left,
                                report_tables.py, pictures.py, suggestions.py: its parts
"""
