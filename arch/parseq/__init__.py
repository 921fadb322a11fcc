"""PARSeq: scene-text recognition by permutation language modelling (arXiv 2207.06966; spec ocr_scaling.md, section 2).

configuration.py   ParseqConfig: every size; counts of parameters and FLOPs
orderings.py       in which order the characters are predicted, and the attention masks that follow from it
decoder.py         the two-stream decoder
model.py           Parseq: encoder, decoder, head
decoding.py        recognise: autoregressive or parallel, then refinement
"""

from arch.parseq.configuration import ParseqConfig, load_parseq_config
from arch.parseq.decoding import recognise
from arch.parseq.model import Parseq
from arch.parseq.orderings import attention_masks, cloze_mask, sample_orderings

__all__ = [
    "Parseq",
    "ParseqConfig",
    "attention_masks",
    "cloze_mask",
    "load_parseq_config",
    "recognise",
    "sample_orderings",
]
