"""Model surgery: a model goes in, a smaller one comes out, with the loss right after every stage of the cut.

groups.py           what can be cut: units (heads, neurons, shortcut units, channels) and everything coupled to each
slicing.py          keep_layers, keep_units, keep_rows, assemble: new models that share what was not cut
cut.py              Cut: the stages of a cut, each measured
bypass.py           the loss without layers; layers.py chooses those that stay
criteria.py         scores of units by weights, gradients, position; masks.py and mask_training.py: by trained gates
calibration.py      rows of tokens out of shard directories; measure.py: the loss on them
vocabulary.py       the rows that a compressed tokenizer keeps; norms.py: what RMSNorm makes of fewer channels
compatibility.py    whether a target can be cut out of a donor, and if not, what to write
inherit.py          the whole recipe (`python -m arch inherit`), options.py its options, inherit_report.py its report
bypass_command.py   `python -m arch bypass`

Method: docs/methods/tiny_lm.md: inheritance.
"""
