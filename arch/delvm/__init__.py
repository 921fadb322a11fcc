"""DeLVM: what a language model over the codes of images has besides (arXiv 2402.10930; spec delvm.md, section 2.3).

factorised_embedding.py  the input embedding through a frozen codebook
initialisation.py        how its weights start
accounting.py            parameters, and FLOPs to make one image
"""
