"""CLIP4STR: a recogniser on top of CLIP that reads its own first answer again (docs/methods/ocr.md: CLIP4STR).

    image ---> image encoder ---> F_i ---> visual decoder ---> logits_v ---> caption
                                   |                                            |
                                   +--- detached ---> [F_i, F_t] <--- F_t <--- text encoder
                                                          |
                                                      cross decoder ---> logits_c, the answer

configuration.py   Clip4StrConfig: every size, counts of FLOPs
model.py           Clip4Str: CLIP's two towers and two of PARSeq's decoders; what is frozen
decoding.py        recognise: both branches, then refinement of both
"""
