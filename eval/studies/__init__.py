"""Studies: a grid of runs, and a report that says what it shows. Each has a file NAME.py and a NAME_report.py.

ablation   additions of a model beside a base: loss, collapse, latency
compare    variants of any task beside a base
scaling    sizes x volumes, with laws (scaling_fits.py) and plots (scaling_plots.py)
ladder     the tiny-model recipe, one trick after another
shapes     depths and widths of equal parameters
delvm      DeLVM's claims; delvm_prompting.py, delvm_plots.py
"""
