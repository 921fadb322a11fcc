"""DeLVM: what a language model over the codes of images has besides (docs/methods/delvm.md: transformer).

factorised_embedding.py  the input embedding through a frozen codebook
initialisation.py        how its weights start
accounting.py            parameters, and FLOPs to make one image
"""
