"""From images to characters: the visual branch reads, the cross branch reads again knowing the caption
(docs/methods/ocr.md: CLIP4STR)."""

from __future__ import annotations

import torch
from torch import Tensor

from arch.clip4str.model import Clip4Str
from arch.parseq.decoding import Mode, first_reading, refine


@torch.no_grad()
def recognise(
    model: Clip4Str,
    images_B3HW: Tensor,
    mode: Mode = "autoregressive",
    refinements: int = 1,
    max_length: int | None = None,
) -> Tensor:
    """Logits of the characters in each image, those of the cross branch.

    Each refinement refines the visual reading, makes a new caption of it, and refines the cross reading with that. The
    released code cuts the cross branch to the longest visual reading of the batch; here it ends where its own words do,
    so that what is read in an image does not depend on its neighbours.

    Args, Returns: see `arch.parseq.decoding.recognise`.
    """
    visual, cross = model.visual_decoder, model.cross_decoder
    image_B1ME = model.encode_image(images_B3HW)[:, None]
    image = visual.decoder.project_memory(image_B1ME)
    visual_BQC = first_reading(visual, image, mode, max_length)
    memory = cross.decoder.project_memory(model.cross_memory(image_B1ME, visual_BQC.argmax(dim=-1)[:, None]))
    cross_BQC = first_reading(cross, memory, mode, max_length)
    for _ in range(refinements):
        visual_BQC = refine(visual, image, visual_BQC)
        memory = cross.decoder.project_memory(model.cross_memory(image_B1ME, visual_BQC.argmax(dim=-1)[:, None]))
        cross_BQC = refine(cross, memory, cross_BQC)
    return cross_BQC
