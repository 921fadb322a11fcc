"""One self-contained report.html per run.

report.py        what happened, how good it is, what to try next; templates/
run_record.py    what the run left
tables.py        tables of evaluations; pictures.py: pictures beside them
suggestions.py   what to try next
"""
