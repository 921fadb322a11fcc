"""An input embedding that is factorised through a frozen codebook (docs/methods/delvm.md: transformer).

    E = codebook_VC @ W_CD        codebook frozen, W learned, no bias;    h_0 = E[ids]

Only rows that a batch holds are projected, so training never forms E. When a model leaves, E is formed once and takes
the place of the two factors (`fold`), and what leaves is a plain transformers model.

The codebook is a buffer: no gradient, no optimizer state, no weight decay, and no change of type with the module's
(an engine that trains in bfloat16 converts buffers too), so it stays what the tokenizer said, bit by bit.

Shapes: B batch, S sequence, V codes, C features of a code, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from arch.pangu_pi import PanguPiForCausalLM

CODEBOOK, PROJECTION = "codebook", "projection.weight"
TABLE_TOLERANCE = 1e-3
"""Largest relative error of a table that counts as the product of a codebook and a projection."""


class FactorisedEmbedding(nn.Module):
    """codebook[ids] @ W.

    Args:
        codebook_VC: features of every code, [V, C]; kept in float32.
        width: D, the width of the model.
        std: standard deviation of the initial W (DeLVM: 0.0052); drawn from torch's global generator.
    """

    codebook: Tensor

    def __init__(self, codebook_VC: Tensor, width: int, std: float = 0.0052) -> None:
        super().__init__()
        if codebook_VC.ndim != 2:
            raise ValueError(f"codebook has shape {tuple(codebook_VC.shape)}; expected [codes, features]")
        self.register_buffer("codebook", codebook_VC.detach().clone().float())
        self.projection = nn.Linear(codebook_VC.shape[1], width, bias=False)
        nn.init.normal_(self.projection.weight, std=std)

    @property
    def num_embeddings(self) -> int:
        """V."""
        return self.codebook.shape[0]

    def forward(self, ids_BS: Tensor) -> Tensor:
        """Embeddings [B, S, D] of ids int64 [B, S] in [0, V)."""
        return self.projection(self.codebook[ids_BS].to(self.projection.weight.dtype))

    @torch.no_grad()
    def fold(self) -> nn.Embedding:
        """The same map as one table [V, D]."""
        return nn.Embedding.from_pretrained(_table(self.codebook, self.projection.weight), freeze=False)

    @torch.no_grad()
    def unfold_(self, table_VD: Tensor) -> None:
        """Takes over the projection of a folded `table_VD`, in place.

        Raises:
            ValueError: the table is of another shape, or not the product of this codebook and any projection.
        """
        shape = (self.num_embeddings, self.projection.out_features)
        if tuple(table_VD.shape) != shape:
            raise ValueError(f"the embedding table has shape {tuple(table_VD.shape)}, the model wants {shape}")
        codebook_VC, wanted_VD = self.codebook.double().cpu(), table_VD.double().cpu()
        weight_CD = torch.linalg.lstsq(codebook_VC, wanted_VD, driver="gelsd").solution
        error = float((codebook_VC @ weight_CD - wanted_VD).norm() / wanted_VD.norm().clamp_min(1e-30))
        if not error <= TABLE_TOLERANCE:
            raise ValueError(
                f"the embedding table is not a product with this codebook (relative error {error:.2g}): it was not "
                "trained factorised, or with another tokenizer"
            )
        self.projection.weight.copy_(weight_CD.T)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FactorisedEmbedding:
        kept = self.codebook
        super()._apply(fn, recurse)
        if self.codebook.dtype != kept.dtype:
            self.codebook = kept.to(self.codebook.device)
        return self


def _table(codebook_VC: Tensor, weight_DC: Tensor) -> Tensor:
    """E [V, D] in the weight's type, multiplied in at least float32."""
    exact = torch.promote_types(weight_DC.dtype, torch.float32)
    return (codebook_VC.to(exact) @ weight_DC.to(exact).T).to(weight_DC.dtype)


def factorise(model: PanguPiForCausalLM, codebook_VC: Tensor, std: float = 0.0052) -> PanguPiForCausalLM:
    """Gives `model` a factorised input embedding in place of its table; returns it.

    Raises:
        ValueError: the codebook has another number of codes than the model, or the head is tied to the embedding.
    """
    config = model.config
    if config.tie_word_embeddings:
        raise ValueError("a factorised embedding has no table that a head could share; set tie_word_embeddings: false")
    if codebook_VC.shape[0] != config.vocab_size:
        raise ValueError(
            f"the codebook has {codebook_VC.shape[0]} codes, the model a vocab_size of {config.vocab_size}"
        )
    model.set_input_embeddings(FactorisedEmbedding(codebook_VC, config.hidden_size, std))
    return model


def fold_state_dict(state_dict: Mapping[str, Tensor], embedding: str = "model.embed_tokens") -> dict[str, Tensor]:
    """The state of the folded model: the two factors of `embedding` become its `weight`; the rest as it is."""
    folded: dict[str, Any] = dict(state_dict)
    if f"{embedding}.{CODEBOOK}" in folded:
        codebook_VC = folded.pop(f"{embedding}.{CODEBOOK}")
        folded[f"{embedding}.weight"] = _table(codebook_VC, folded.pop(f"{embedding}.{PROJECTION}"))
    return folded


__all__ = ["FactorisedEmbedding", "factorise", "fold_state_dict"]
