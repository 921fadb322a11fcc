"""PARSeq: scene-text recognition by permutation language modelling (arXiv 2207.06966; spec ocr_scaling.md, section 2).

configuration.py      ParseqConfig: every size, counts of FLOPs; recogniser_config.py is what CLIP4STR shares
orderings.py          in which order the characters are predicted, and the attention masks that follow from it
decoder.py            the two-stream decoder
character_decoder.py  the same with embeddings, positions and head: what reads a memory, here and in CLIP4STR
model.py              Parseq: a ViT encoder and that
decoding.py           recognise: autoregressive or parallel, then refinement
"""

from arch.parseq.character_decoder import CharacterDecoder
from arch.parseq.configuration import ParseqConfig, load_parseq_config
from arch.parseq.decoding import recognise
from arch.parseq.model import Parseq
from arch.parseq.orderings import attention_masks, cloze_mask, sample_orderings
from arch.parseq.recogniser_config import RecogniserConfig

__all__ = [
    "CharacterDecoder",
    "Parseq",
    "ParseqConfig",
    "RecogniserConfig",
    "attention_masks",
    "cloze_mask",
    "load_parseq_config",
    "recognise",
    "sample_orderings",
]
