"""Visual language models on held-out image pairs (docs/methods/delvm.md: evaluation).

run.py               the command: loss per task, prompting, control
sets.py              the held-out pairs, named in a YAML; encoded_pairs.py: as codes
prompts.py           example pairs and a query -> the answer image; picture.py shows it
metrics.py           each task's own measure
control.py           whether the answer follows the prompt
sentence_losses.py   loss and accuracy on visual sentences
"""
