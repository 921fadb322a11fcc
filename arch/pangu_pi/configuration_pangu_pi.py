"""The configuration of a PanGu-pi language model: LLaMA's fields, the series activation and the augmented shortcut.

Self-contained (transformers only): an exported model carries this file beside its weights.
Source: "PanGu-pi: Enhancing Language Model Architectures via Nonlinearity Compensation", arXiv 2312.17276.
"""

import difflib
import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig
from transformers.activations import ACT2FN

# Every activation with sigma(0) = 0, so that a term whose scale and bias are zero adds nothing.
MAX_SIZE, MAX_TERMS = 2**31, 64  # lists of that length are made of what a file says
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "series_terms",
    "shortcut_reduction",
)
SERIES_ACTIVATIONS = ("silu", "swish", "gelu", "gelu_pytorch_tanh", "relu", "tanh")


@strict
class PanguPiConfig(LlamaConfig):
    r"""LLaMA's configuration plus the two PanGu-pi additions; `series_terms=1, shortcut_count=0` *is* LLaMA.

    Args:
        series_terms: n of Eq. 7, the number of activations summed on the FFN's gate path. 1 is the plain activation
            without parameters.
        series_scope: `"channel"` learns one scale and one bias per term and FFN channel, `"scalar"` one per term.
        series_init: `"identity"` starts terms 2..n at zero, which leaves LLaMA's function unchanged at step 0. Two
            kinds of term would never learn from there and get scales ~ N(0, 0.02^2) instead: ReLU, which has no slope
            at 0, and a term with the function of an earlier zero term (n >= 3), whose gradients would stay equal to
            that term's. `"trunc_normal"` draws the scales of all terms from 2 on from a truncated N(0, 0.02^2).
        series_learn_first: whether the first term has a learned scale and bias too, or stays the plain activation.
        series_activations: names of the n base functions; `None` takes `hidden_act` for all.
        shortcut_count: T of Eq. 4, the number of augmented shortcuts beside attention; 0 has none.
        shortcut_reduction: r; a shortcut's bottleneck is `hidden_size / r` wide.
        shortcut_init: `"zero"` starts the up-projection at zero (LLaMA's function at step 0), `"trunc_normal"` draws
            both matrices from a truncated N(0, 0.02^2).
        shortcut_input: `"normed"` feeds the shortcut what attention gets, `"raw"` the residual stream before the norm.
        shortcut_activation: the nonlinearity inside the bottleneck (a name of transformers' `ACT2FN`).
        init_scheme: `"constant"` draws every matrix with `initializer_range`; `"residual_scaled"` divides that by
            sqrt(2L) for the two matrices of every layer that write to the residual stream, `"layer_scaled"` by
            sqrt(2(l+1)) in layer l = 0..L-1, and `"zero_output"` starts those two at zero, so that at step 0 a block
            passes the residual stream on unchanged (Fixup, arXiv 1901.09321, for the last matrix of a branch). It is a
            start and no shape: any export holds it.
        final_logit_softcapping: c; logits become c tanh(logits / c) (Gemma 2, arXiv 2408.00118, section 2; its name in
            transformers). None leaves them. With it the shape is no LLaMA.
        qk_norm: whether queries and keys pass an RMSNorm with one learned weight per channel of a head before their
            rotary embedding (Henry et al., arXiv 2010.04245; in this form and under these parameter names Qwen3, arXiv
            2505.09388). With it the shape is no LLaMA.

    Raises:
        StrictDataclassError: a field has the wrong type or value, or fields contradict each other.
    """

    model_type = "pangu_pi"
    base_model_tp_plan = None  # LLaMA's would shard the FFN and not the series scales that belong to it

    series_terms: int = 2
    series_scope: str = "channel"
    series_init: str = "identity"
    series_learn_first: bool = True
    series_activations: list[str] | None = None
    shortcut_count: int = 1
    shortcut_reduction: int = 32
    shortcut_init: str = "zero"
    shortcut_input: str = "normed"
    shortcut_activation: str = "gelu"
    init_scheme: str = "constant"
    final_logit_softcapping: float | int | None = None
    qk_norm: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        # Before LLaMA's own, which divides by some of them.
        for field in SIZES:
            if (size := getattr(self, field)) is not None and size < 1:
                raise ValueError(f"{field} is {size}; it must be at least 1")
            if size is not None and size > (MAX_TERMS if field == "series_terms" else MAX_SIZE):
                raise ValueError(f"{field} is {size}, larger than in any model")
        super().__post_init__(**kwargs)

    @property
    def is_llama(self) -> bool:
        """Whether this model is a plain LLaMA: the same parameter names, and the same function of them."""
        plain_blocks = self.series_terms == 1 and self.shortcut_count == 0 and not self.qk_norm
        return plain_blocks and self.final_logit_softcapping is None

    @property
    def series_activation_names(self) -> list[str]:
        """The activation of every term, length n."""
        return self.series_activations or [self.hidden_act] * self.series_terms

    def validate_pangu_pi(self) -> None:
        """Part of `@strict` validation: choices, divisibility, and fields that contradict each other."""
        choices = {
            "series_scope": ("channel", "scalar"),
            "series_init": ("identity", "trunc_normal"),
            "shortcut_init": ("zero", "trunc_normal"),
            "shortcut_input": ("normed", "raw"),
            "init_scheme": ("constant", "residual_scaled", "layer_scaled", "zero_output"),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} is {getattr(self, field)!r}; it must be one of {', '.join(allowed)}")
        for field in ("hidden_act", "shortcut_activation"):
            if (name := getattr(self, field)) not in ACT2FN:
                nearest = difflib.get_close_matches(name, ACT2FN, n=1, cutoff=0.0)[0]
                raise ValueError(f"{field} is {name!r}, which transformers does not know; did you mean {nearest!r}?")
        if self.final_logit_softcapping is not None and not 0 < self.final_logit_softcapping < math.inf:
            raise ValueError(
                f"final_logit_softcapping is {self.final_logit_softcapping}; it must be above 0 (such as 30), or null"
            )
        if self.shortcut_count < 0:
            raise ValueError(f"shortcut_count is {self.shortcut_count}; it must not be negative")
        if self.shortcut_count and self.hidden_size % self.shortcut_reduction:
            raise ValueError(
                f"shortcut_reduction {self.shortcut_reduction} does not divide hidden_size {self.hidden_size}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads {self.num_key_value_heads} does not divide "
                f"num_attention_heads {self.num_attention_heads}"
            )
        names = self.series_activation_names
        if len(names) != self.series_terms:
            raise ValueError(f"series_activations names {len(names)} functions for series_terms {self.series_terms}")
        if self.series_terms == 1 and names != [self.hidden_act]:
            raise ValueError(
                f"with series_terms 1 the activation is hidden_act ({self.hidden_act!r}), not {names[0]!r}"
            )
        if self.series_terms > 1 and (unknown := sorted(set(names) - set(SERIES_ACTIVATIONS))):
            raise ValueError(f"series activation {unknown[0]!r} is not one of {', '.join(SERIES_ACTIVATIONS)}")


__all__ = ["SERIES_ACTIVATIONS", "PanguPiConfig"]
