"""The part of a recogniser that turns a memory into characters: PARSeq's decoder with its inputs and its head.

Shapes: B batch, M memory tokens, D width, L inputs of the decoder ([B] and the characters so far), Q positions to
predict, K orderings, C classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from arch.parseq.decoder import Decoder, KeysValues
from arch.parseq.orderings import attention_masks
from arch.parseq.recogniser_config import RecogniserConfig


class TokenEmbedding(nn.Module):
    """Embeds ids, scaled by the square root of the width."""

    def __init__(self, ids: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(ids, width)

    def forward(self, ids_BL: Tensor) -> Tensor:
        return math.sqrt(self.embedding.embedding_dim) * self.embedding(ids_BL)


class CharacterDecoder(nn.Module):
    """Memory in, one distribution over characters per position out.

    Args:
        config: sizes.
        encoder: what makes the memory, for a model that keeps it beside the decoder's parts, as PARSeq's weights do;
            it comes first among them.
    """

    def __init__(self, config: RecogniserConfig, encoder: nn.Module | None = None) -> None:
        super().__init__()
        if encoder is not None:
            self.encoder = encoder
        self.config = config
        hidden = config.decoder_mlp_ratio * config.width
        self.decoder = Decoder(config.decoder_layers, config.width, config.decoder_heads, hidden, config.dropout)
        self.head = nn.Linear(config.width, config.classes)
        self.text_embed = TokenEmbedding(config.pad + 1, config.width)
        self.pos_queries = nn.Parameter(torch.empty(1, config.max_length + 1, config.width))
        self.dropout = nn.Dropout(config.dropout)
        for part in (self.decoder, self.head, self.text_embed):
            part.apply(_initialise)
        nn.init.trunc_normal_(self.pos_queries, std=0.02)

    def forward(self, memory: Tensor, context_BL: Tensor, ordering_KP: Tensor) -> Tensor:
        """Logits of every position under every ordering, from the true characters: what training needs.

        Args:
            memory: [B, M, D], or [B, K, M, D] where orderings have memories of their own.
            context_BL: [B] and the characters of the labels, padded; [E] and [P] are hidden from everyone.
            ordering_KP: int64 [K, L + 1], from `sample_orderings`.

        Returns:
            [B, K, L, C]; position i predicts character i + 1, or [E].
        """
        content_KLL, query_KLL = attention_masks(ordering_KP.to(context_BL.device, non_blocking=True))
        hidden_B11L = ((context_BL == self.config.pad) | (context_BL == self.config.eos))[:, None, None, :]
        return self.decode(memory, context_BL, query_KLL[None] | hidden_B11L, content_KLL[None] | hidden_B11L)

    def decode(
        self,
        memory: Tensor | list[KeysValues],
        context_BL: Tensor,
        query_blocked: Tensor | None,
        content_blocked: Tensor | None,
        positions: slice | None = None,
    ) -> Tensor:
        """Logits [B, K, Q, C] of some positions, given what is known.

        Args:
            memory: [B, M, D] or [B, K, M, D], or `decoder.project_memory` of it.
            context_BL: known ids, [B] first.
            query_blocked: bool [B or 1, K or 1, Q, L], True hides a known id from a position; None hides nothing.
            content_blocked: the same between known ids, [B or 1, K or 1, L, L]; matters from two layers on.
            positions: the outputs to compute; None: the first L.
        """
        positions = positions or slice(0, context_BL.shape[1])
        orderings = query_blocked.shape[1] if query_blocked is not None else 1
        query_BKQD = self.pos_queries[:, None, positions].expand(len(context_BL), orderings, -1, -1)
        content_B1LD = self.dropout(self._embed(context_BL))[:, None]
        hidden_BKQD = self.decoder(self.dropout(query_BKQD), content_B1LD, memory, query_blocked, content_blocked)
        return self.head(hidden_BKQD)

    def _embed(self, context_BL: Tensor) -> Tensor:
        """Content c_0 = E[[B]], c_j = p_(j-1) + E[id_j]: the query of output i is the position of input i + 1."""
        content_BLD = self.text_embed(context_BL)
        placed = content_BLD[:, 1:] + self.pos_queries[:, : context_BL.shape[1] - 1]
        return torch.cat([content_BLD[:, :1], placed], dim=1)

    def get_output_embeddings(self) -> nn.Module:
        """The head, under the name that transformers gives it."""
        return self.head

    def no_weight_decay(self) -> set[str]:
        """Names of matrices that weight decay spares."""
        return {"text_embed.embedding.weight", "pos_queries"}


def _initialise(module: nn.Module) -> None:
    """Matrices by a truncated normal of 0.02, biases 0; attention's input projection keeps its Xavier values."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
