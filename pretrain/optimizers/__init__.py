"""Optimizers that every ZeRO stage takes.

optimizer.py        parameter groups: who is decayed, who is orthogonalised
muon.py             Muon for the matrices, AdamW for the rest; newton_schulz.py is its update
pieces.py           where a parameter's piece lies in a rank's vectors
master_weights.py   fp32 masters without ZeRO
"""
