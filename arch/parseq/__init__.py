"""PARSeq: scene-text recognition by permutation language modelling (arXiv 2207.06966; docs/methods/ocr.md).

configuration.py      ParseqConfig: every size, counts of FLOPs; recogniser_config.py is what CLIP4STR shares
orderings.py          in which order the characters are predicted, and the attention masks that follow from it
decoder.py            the two-stream decoder
character_decoder.py  the same with embeddings, positions and head: what reads a memory, here and in CLIP4STR
model.py              Parseq: a ViT encoder (stem.py cuts its patches) and that
decoding.py           recognise: autoregressive or parallel, then refinement
"""
