"""PARSeq's decoder: queries are positions, keys and values are characters that are already known, and the image.

    query   p_i           which position is to be predicted           (B, K, Q, D)
    content [B], c1, ...  what is known, with its position            (B, 1 or K, L, D)
    memory                the image                                   (B, M, D)

Both streams pass through the same weights. The K orderings of a word differ only in their masks, so they share the
image's keys and values, and at the first layer the content too: K orderings cost K query streams, not K decoders. The
last layer's content stream would never be read and is not computed.

Parameter names are those of `baudm/parseq`, whose attention is `nn.MultiheadAttention`, so its weights load.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class KeysValues(NamedTuple):
    """Projected keys and values, each [B, 1 or K, N, D]."""

    keys: Tensor
    values: Tensor


class Attention(nn.Module):
    """Multi-head attention with `nn.MultiheadAttention`'s parameters; keys and values can be projected beforehand."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def project(self, source_BKND: Tensor) -> KeysValues:
        """Keys and values of a sequence."""
        width = self.out_proj.in_features
        both = F.linear(source_BKND, self.in_proj_weight[width:], self.in_proj_bias[width:])
        return KeysValues(*both.chunk(2, dim=-1))

    def forward(self, x_BKQD: Tensor, source: KeysValues | Tensor, blocked_BKQN: Tensor | None) -> Tensor:
        """Attends from x to `source`.

        Args:
            x_BKQD: queries, before projection.
            source: of [B, K, N, D], or [B, 1, N, D] where all orderings share it; projected or not.
            blocked_BKQN: True hides a key; dimensions of size 1 are repeated.
        """
        width = x_BKQD.shape[-1]
        query_BKQD = F.linear(x_BKQD, self.in_proj_weight[:width], self.in_proj_bias[:width])
        keys, values = self.project(source) if isinstance(source, Tensor) else source
        batch, orderings, queries = query_BKQD.shape[:3]
        shared = keys.shape[1] == 1
        rows = (batch, orderings * queries) if shared else (batch * orderings, queries)
        visible = None
        if blocked_BKQN is not None:
            whole = ~blocked_BKQN.expand(batch, orderings, queries, keys.shape[2])
            visible = whole.reshape(rows[0], 1, rows[1], -1)
        attended = F.scaled_dot_product_attention(
            self._split(query_BKQD.reshape(*rows, width)),
            self._split(keys.reshape(rows[0], -1, width)),
            self._split(values.reshape(rows[0], -1, width)),
            attn_mask=visible,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out_proj(attended.transpose(1, 2).reshape(query_BKQD.shape))

    def _split(self, x_BND: Tensor) -> Tensor:
        return x_BND.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class DecoderLayer(nn.Module):
    """One block, pre-norm, for both streams."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads, dropout)
        self.cross_attn = Attention(width, heads, dropout)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.norm_q, self.norm_c = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        query_BKQD: Tensor,
        content_BKLD: Tensor,
        memory: KeysValues,
        query_blocked: Tensor | None,
        content_blocked: Tensor | None,
        with_content: bool,
    ) -> tuple[Tensor, Tensor]:
        """Returns the new queries, and the new content (the old one without `with_content`)."""
        normed_BKLD = self.norm_c(content_BKLD)
        source = self.self_attn.project(normed_BKLD)
        query_BKQD = self._stream(query_BKQD, self.norm_q(query_BKQD), source, memory, query_blocked)
        if with_content:
            orderings = content_blocked.shape[1] if content_blocked is not None else 1
            if content_BKLD.shape[1] < orderings:
                content_BKLD = content_BKLD.expand(-1, orderings, -1, -1)
                normed_BKLD = normed_BKLD.expand(-1, orderings, -1, -1)
            content_BKLD = self._stream(content_BKLD, normed_BKLD, source, memory, content_blocked)
        return query_BKQD, content_BKLD

    def _stream(
        self, x_BKQD: Tensor, normed_BKQD: Tensor, source: KeysValues, memory: KeysValues, blocked: Tensor | None
    ) -> Tensor:
        x_BKQD = x_BKQD + self.dropout(self.self_attn(normed_BKQD, source, blocked))
        x_BKQD = x_BKQD + self.dropout(self.cross_attn(self.norm1(x_BKQD), memory, None))
        hidden = self.dropout(F.gelu(self.linear1(self.norm2(x_BKQD))))
        return x_BKQD + self.dropout(self.linear2(hidden))


class Decoder(nn.Module):
    """The blocks and the final norm."""

    def __init__(self, layers: int, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(width, heads, hidden, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def project_memory(self, memory: Tensor) -> list[KeysValues]:
        """The memory's keys and values for every layer, to call `forward` several times; it is normalised already."""
        memory_BKMD = memory if memory.ndim == 4 else memory[:, None]
        return [layer.cross_attn.project(memory_BKMD) for layer in self.layers]  # type: ignore[union-attr, operator]

    def forward(
        self,
        query_BKQD: Tensor,
        content_BKLD: Tensor,
        memory: Tensor | list[KeysValues],
        query_blocked: Tensor | None = None,
        content_blocked: Tensor | None = None,
    ) -> Tensor:
        """The query stream after all layers, normalised: [B, K, Q, D]. Masks: see `Attention`."""
        projected = self.project_memory(memory) if isinstance(memory, Tensor) else memory
        for number, (layer, image) in enumerate(zip(self.layers, projected, strict=True)):
            query_BKQD, content_BKLD = layer(
                query_BKQD,
                content_BKLD,
                image,
                query_blocked,
                content_blocked,
                with_content=number + 1 < len(self.layers),
            )
        return self.norm(query_BKQD)
