"""Where documents begin in a micro-batch of packed rows: what attention of variable length needs to keep them apart.

    position_ids     0 1 2 0 1 | 0 1 0 1 2          two rows of five tokens, four documents
    cu_seq_lens      0     3     5   7     10       begins of documents in the rows laid end to end, and the end
    longest_document . . .                          its shape is the number: 3

It is found on the host, where the batch is put together, once for all layers and both passes. A kernel wants the
longest length as a number; kept in a tensor on a device it would have to be waited for, so it is kept as a shape.

Shapes: B batch, S sequence, N documents, M tokens of the longest one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def document_begins(position_BS: Tensor) -> Tensor:
    """Where documents begin, bool [B, S]: at every row, and at every position that does not follow the one before."""
    begins_BS = torch.ones_like(position_BS, dtype=torch.bool)
    begins_BS[:, 1:] = position_BS.diff(dim=1) != 1
    return begins_BS


def document_bounds(position_BS: Tensor) -> dict[str, Tensor]:
    """The documents of packed rows, in the form that attention of variable length takes.

    Args:
        position_BS: position of every token in its document, int64 [B, S]; reading it waits for its device.

    Returns:
        cu_seq_lens: int32 [N + 1].
        longest_document: uint8 [M], zeros.
    """
    begins_N = document_begins(position_BS).flatten().nonzero().flatten()
    cu_seq_lens = torch.cat([begins_N, begins_N.new_tensor([position_BS.numel()])]).to(torch.int32)
    longest = int(cu_seq_lens.diff().max())
    return {
        "cu_seq_lens": cu_seq_lens,
        "longest_document": torch.zeros(longest, dtype=torch.uint8, device=position_BS.device),
    }


__all__ = ["document_begins", "document_bounds"]
