"""Studies: a grid of runs, and a report that says what it shows. Each is a file NAME.py and a template NAME.md.j2.

compare    variants of any task beside a base; for language models also collapse and latency (`ablation` is one)
scaling    sizes x volumes, with laws (scaling_fits.py) and plots (scaling_plots.py)
ladder     the tiny-model recipe, one trick after another
shapes     depths and widths of equal parameters
delvm      DeLVM's claims; delvm_report.py, delvm_prompting.py, delvm_plots.py
markdown   fills templates/NAME.md.j2
"""
