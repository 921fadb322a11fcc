"""PanGu-pi causal language model: LLaMA's block with a series activation in the FFN and a shortcut beside attention.

    h  = RMSNorm_1(x)
    x' = x + Attention(h) + sum of T_i(h) over i = 1..T        (Eq. 4)   augmented_shortcut.py
    g  = RMSNorm_2(x')
    y  = x' + (series(g W_gate) * g W_up) W_down               (Eq. 9)   series_activation.py

Everything that LLaMA has is LLaMA's own code and carries LLaMA's names, so with `series_terms=1, shortcut_count=0` this
*is* `LlamaForCausalLM`: bit-equal logits and gradients, and state dicts load both ways. One thing is left out on
purpose: LLaMA never trains the embedding of `pad_token_id`, and here every token learns (see `PanguPiModel`). The
parameters that LLaMA does not have draw nothing from the global generator: the same seed gives the same shared weights
with and without them.

Self-contained (torch, transformers and the files beside it): an exported model carries its modeling files.
Source: arXiv 2312.17276. Shape suffixes: B batch, S sequence, D hidden width.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaForCausalLM,
    LlamaMLP,
    LlamaModel,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

from .augmented_shortcut import AugmentedShortcut
from .configuration_pangu_pi import PanguPiConfig
from .series_activation import SeriesActivation


class PanguPiMLP(LlamaMLP):
    """SwiGLU whose gate runs through a series activation; LLaMA's MLP when n = 1."""

    def __init__(self, config: PanguPiConfig, init_seed: int = 0) -> None:
        super().__init__(config)
        if config.series_terms > 1:
            self.act_fn = SeriesActivation(
                config.intermediate_size,
                config.series_activation_names,
                scope=config.series_scope,
                learn_first=config.series_learn_first,
                init=config.series_init,
                init_seed=init_seed,
            )

    def forward(self, g_BSD: torch.Tensor) -> torch.Tensor:
        if not isinstance(self.act_fn, SeriesActivation):
            return super().forward(g_BSD)
        return self.down_proj(self.act_fn(self.gate_proj(g_BSD), self.up_proj(g_BSD)))


class HeadRMSNorm(LlamaRMSNorm):
    """The norm of queries or keys, over the channels of a head; a class of its own, since no cut touches those."""


class NormedAttention(LlamaAttention):
    """LLaMA's attention with queries and keys normalised before their rotary embedding, as Qwen3 has it."""

    sliding_window = None  # which Qwen3's forward pass hands on

    def __init__(self, config: PanguPiConfig, layer_idx: int) -> None:
        super().__init__(config=config, layer_idx=layer_idx)
        self.q_norm = HeadRMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.k_norm = HeadRMSNorm(self.head_dim, eps=config.rms_norm_eps)

    forward = Qwen3Attention.forward


class PanguPiDecoderLayer(GradientCheckpointingLayer):
    """One block: attention with augmented shortcuts, then the series-activated FFN, both pre-normalised."""

    def __init__(self, config: PanguPiConfig, layer_idx: int, init_seed: int = 0) -> None:
        super().__init__()
        self.self_attn = (NormedAttention if config.qk_norm else LlamaAttention)(config=config, layer_idx=layer_idx)
        self.mlp = PanguPiMLP(config, init_seed)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.shortcut: AugmentedShortcut | None = None
        if config.shortcut_count:
            self.shortcut = AugmentedShortcut(
                config.hidden_size,
                config.shortcut_count,
                config.shortcut_reduction,
                activation=config.shortcut_activation,
                init=config.shortcut_init,
                init_seed=init_seed + 1,
            )
        self.shortcut_input = config.shortcut_input
        # The two matrices that write to the residual stream may start smaller, or at zero; see `init_scheme`.
        divisor = {
            "constant": 1.0,
            "residual_scaled": (2 * config.num_hidden_layers) ** 0.5,
            "layer_scaled": (2 * (layer_idx + 1)) ** 0.5,
            "zero_output": math.inf,
        }[config.init_scheme]
        self.self_attn.o_proj.init_divisor = divisor
        self.mlp.down_proj.init_divisor = divisor

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Map hidden states [B, S, D] to [B, S, D].

        The key-value cache is in `kwargs`, by the name that this transformers has for it: `past_key_values` or `cache`.
        An empty mask is no mask: it tells transformers, which would look for documents in `position_ids` and so wait
        for the device, that whoever called knows that attention needs none.
        """
        if isinstance(attention_mask, torch.Tensor) and attention_mask.numel() == 0:
            attention_mask = None
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        shortcut_input = hidden_states if self.shortcut_input == "normed" else residual
        hidden_states, _ = self.self_attn(
            hidden_states=hidden_states,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            position_embeddings=position_embeddings,
            **kwargs,
        )
        if self.shortcut is not None:
            hidden_states = hidden_states + self.shortcut(shortcut_input)
        hidden_states = residual + hidden_states

        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        return residual + hidden_states


class PanguPiPreTrainedModel(LlamaPreTrainedModel):
    """What the base model and the causal LM share: the config class, initialisation, and what can be recorded."""

    config: PanguPiConfig
    config_class = PanguPiConfig
    _no_split_modules = ["PanguPiDecoderLayer"]  # noqa: RUF012
    _can_record_outputs = {"hidden_states": PanguPiDecoderLayer, "attentions": LlamaAttention}  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw one module: LLaMA's from the global generator as LLaMA does, new ones from seeds of their own.

        A weight that a checkpoint has loaded is left alone (`transformers.initialization` checks its flag).
        """
        if isinstance(module, AugmentedShortcut):
            down_KD, up_KD = module.initial_weights()
            init.copy_(module.down_weight, down_KD)
            init.copy_(module.up_weight, up_KD)
        elif isinstance(module, SeriesActivation):
            init.copy_(module.scale, module.initial_scale())
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)
            divisor = getattr(module, "init_divisor", 1.0)
            if divisor == math.inf:  # drawn nevertheless, so that the seed gives every other weight as ever
                init.zeros_(module.weight)
            elif divisor != 1.0:
                init.copy_(module.weight, module.weight / divisor)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that must not be decayed though they are matrices: series scales and biases."""
        return {
            f"{name}.{parameter}"
            for name, module in self.named_modules()
            if isinstance(module, SeriesActivation)
            for parameter in ("scale", "bias")
        }


class PanguPiRotaryEmbedding(LlamaRotaryEmbedding):
    """LLaMA's rotary embedding, whose inverse frequencies stay in float32 whatever type the model is cast to.

    In bf16 they are off by up to 0.4 percent, and an angle is one of them times the position.
    """

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "PanguPiRotaryEmbedding":
        def move(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)


class PanguPiModel(PanguPiPreTrainedModel):
    """The decoder stack. Its forward pass is LLaMA's own; only the layers differ.

    Packed rows: `position_ids` [B, S] that restart at every document (and no attention mask, no cache) keep documents
    from seeing each other through sdpa and flex attention. Attention of variable length needs to be told where they
    begin (transformers' `cu_seq_lens_q` and so on) as soon as there is more than one row.

    No embedding is frozen: LLaMA keeps that of `pad_token_id` where it starts, at zero, and without gradient. Rows are
    packed, so nothing is padding, and in many vocabularies that token is the one that begins and ends every document.
    """

    def __init__(self, config: PanguPiConfig) -> None:
        super().__init__(config)
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        seeds = _layer_seeds(config.num_hidden_layers)
        self.layers = nn.ModuleList([PanguPiDecoderLayer(config, i, seed) for i, seed in enumerate(seeds)])
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = PanguPiRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    forward = LlamaModel.forward


class SoftCappedHead(nn.Linear):
    """A language-model head whose logits stay within (-c, c): c tanh(logits / c), see `final_logit_softcapping`."""

    def __init__(self, hidden_size: int, vocab_size: int, cap: float) -> None:
        super().__init__(hidden_size, vocab_size, bias=False)
        self.cap = cap

    def forward(self, hidden_BSD: torch.Tensor) -> torch.Tensor:
        return self.cap * torch.tanh(super().forward(hidden_BSD) / self.cap)


class PanguPiForCausalLM(PanguPiPreTrainedModel, GenerationMixin):
    """The decoder stack and a language-model head; takes and returns what `LlamaForCausalLM` does."""

    _tied_weights_keys = LlamaForCausalLM._tied_weights_keys

    def __init__(self, config: PanguPiConfig) -> None:
        super().__init__(config)
        self.model = PanguPiModel(config)
        self.vocab_size = config.vocab_size
        cap, shape = config.final_logit_softcapping, (config.hidden_size, config.vocab_size)
        self.lm_head = nn.Linear(*shape, bias=False) if cap is None else SoftCappedHead(*shape, cap)
        self.post_init()

    forward = LlamaForCausalLM.forward


def _layer_seeds(layers: int) -> list[int]:
    """One seed per layer for what LLaMA does not have, from the global generator's state, which does not advance."""
    generator = torch.Generator().set_state(torch.get_rng_state())
    return torch.randint(2**62, (layers,), generator=generator, device="cpu").tolist()


__all__ = ["PanguPiForCausalLM", "PanguPiModel", "PanguPiPreTrainedModel"]
