"""Several rounds over the data (docs/methods/tiny_lm.md: rounds).

multi_round.py   when each begins, and what happens between two
ledger.py        the loss of every unit of the data; loss_record.py: of every batch
selection.py     which units the next round sees
"""
