"""Before a run: what it will need, and which setting is fastest.

options.py        what the commands take, without torch
plan.py           memory by part, time, disk; plan_report.py prints it
zero_memory.py    a rank's memory under ZeRO; activation_memory.py: what a step keeps
accelerators.py   memory and peak of known devices
budget.py         from hardware and hours to a run: budget_run.py, budget_yaml.py, budget_report.py
scaling_law.py    what loss a budget buys; shape_rules.py: shapes from 1 M to 7 B
bench.py          the search; bench_run.py measures a candidate, bench_hook.py inside it, bench_report.py the command
"""
