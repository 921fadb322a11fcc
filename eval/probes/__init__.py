"""What a model does inside, and what it costs.

collapse.py     diversity, effective dimension and isotropy per layer; collapse_plots.py draws them
forgetting.py   the loss on each part of a run's data, when it was trained and at the end
latency.py      milliseconds per generated token
"""
