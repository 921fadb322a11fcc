"""What a shape costs, by arithmetic: parameters and FLOPs by part, for any size, without allocating a weight.

Conventions. A multiply-add is two FLOPs. Looking a token up in the embedding is not counted. Attention scores are
counted causally: a token attends to (S + 1) / 2 positions on average. Of the element-wise work only the series
activation's is counted, since it is one of the two things that PanGu-pi adds; norms, rotary embeddings, softmax and the
plain activation are left out, as usual. Training costs three forward passes (backward is two).
"""

from dataclasses import dataclass

from arch.pangu_pi import PanguPiConfig

ACTIVATION_FLOPS = 4  # of one element of SiLU: exponential, addition, division, multiplication


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters by part; the sum is what `sum(p.numel() for p in model.parameters())` gives."""

    embedding: int
    """V * D."""
    head: int
    """V * D, or 0 when it is tied to the embedding."""
    attention: int
    """Query, key, value and output projections of all layers."""
    feed_forward: int
    """Gate, up and down projections of all layers."""
    norms: int
    """(2L + 1) * D, and 2L of a head's width with qk_norm."""
    series: int
    """Scales and biases of the series activation, 2nF a layer."""
    shortcut: int
    """Augmented shortcuts, 2T * D * D/r a layer."""

    @property
    def total(self) -> int:
        """All parameters."""
        return self.base + self.series + self.shortcut

    @property
    def base(self) -> int:
        """The same shape as a plain LLaMA."""
        return self.embedding + self.head + self.attention + self.feed_forward + self.norms

    @property
    def embedding_and_head_share(self) -> float:
        """PEHL of arXiv 2402.02791: the fraction of all parameters that hold the vocabulary."""
        return (self.embedding + self.head) / self.total


@dataclass(frozen=True)
class Flops:
    """Forward FLOPs per token by part, at one sequence length."""

    projections: int
    """Attention's four linear maps, all layers."""
    scores: float
    """Attention scores and their product with the values, causal mean, all layers."""
    feed_forward: int
    """The three linear maps of the FFN, all layers."""
    head: int
    """The language-model head, tied or not."""
    series: int
    """What the series activation adds to the plain activation, all layers."""
    shortcut: int
    """The augmented shortcuts, all layers."""

    @property
    def linear(self) -> int:
        """The blocks' linear maps without additions, the denominator of overheads: L * (8D^2 + 6DF)."""
        return self.projections + self.feed_forward

    @property
    def forward_per_token(self) -> float:
        """One forward pass."""
        return self.linear + self.scores + self.head + self.series + self.shortcut

    @property
    def train_per_token(self) -> float:
        """Forward and backward, without recomputation; the numerator of MFU."""
        return 3 * self.forward_per_token


def count_parameters(config: PanguPiConfig) -> Parameters:
    """The parameters of `config`'s causal LM, by part."""
    layers, hidden, ffn = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    vocabulary = config.vocab_size * hidden
    return Parameters(
        embedding=vocabulary,
        head=0 if config.tie_word_embeddings else vocabulary,
        attention=layers * (_attention_weights(config) + _attention_biases(config)),
        feed_forward=layers * (3 * hidden * ffn + config.mlp_bias * (2 * ffn + hidden)),
        norms=(2 * layers + 1) * hidden + config.qk_norm * 2 * layers * _head_dim(config),
        series=layers * 2 * _learned_terms(config) * (ffn if config.series_scope == "channel" else 1),
        shortcut=layers * _shortcut_weights(config),
    )


def count_flops(config: PanguPiConfig, sequence_length: int) -> Flops:
    """Forward FLOPs per token of `config`'s causal LM on sequences of `sequence_length` tokens, by part."""
    layers, hidden, ffn = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    extra_terms = config.series_terms - 1
    series = 2 * _learned_terms(config) + extra_terms * (ACTIVATION_FLOPS + 1)  # affine; activations and their sum
    return Flops(
        projections=2 * layers * _attention_weights(config),
        scores=2 * 2 * layers * config.num_attention_heads * _head_dim(config) * (sequence_length + 1) / 2,
        feed_forward=2 * layers * 3 * hidden * ffn,
        head=2 * config.vocab_size * hidden,
        series=layers * series * ffn,
        shortcut=2 * layers * _shortcut_weights(config),
    )


def _head_dim(config: PanguPiConfig) -> int:
    return config.head_dim or config.hidden_size // config.num_attention_heads


def _attention_weights(config: PanguPiConfig) -> int:
    queries, keys = config.num_attention_heads * _head_dim(config), config.num_key_value_heads * _head_dim(config)
    return config.hidden_size * (2 * queries + 2 * keys)


def _attention_biases(config: PanguPiConfig) -> int:
    queries, keys = config.num_attention_heads * _head_dim(config), config.num_key_value_heads * _head_dim(config)
    return config.attention_bias * (queries + 2 * keys + config.hidden_size)


def _learned_terms(config: PanguPiConfig) -> int:
    """Terms of the series that have a scale and a bias: none for the plain activation."""
    return 0 if config.series_terms == 1 else config.series_terms - (not config.series_learn_first)


def _shortcut_weights(config: PanguPiConfig) -> int:
    return 2 * config.shortcut_count * config.hidden_size * (config.hidden_size // config.shortcut_reduction)


__all__ = ["Flops", "Parameters", "count_flops", "count_parameters"]
